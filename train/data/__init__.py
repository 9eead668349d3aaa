"""Where training samples come from."""

from engine.contract.proj import ignore_foreign_proj_data

ignore_foreign_proj_data()  # before any module of this package imports rasterio, which reads the variables then
