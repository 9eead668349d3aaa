"""Georeferenced rasters in and out: the only rooms of rasterio and GDAL."""
