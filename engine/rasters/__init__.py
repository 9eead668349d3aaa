"""Georeferenced rasters in and out: the only rooms of rasterio and GDAL."""

from engine.contract.proj import ignore_foreign_proj_data

ignore_foreign_proj_data()  # before any module of this package imports rasterio, which reads the variables then
