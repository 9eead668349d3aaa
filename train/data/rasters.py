"""Reading rasters for training: whole bands, brought onto one grid, with what is measured where."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT


class DataError(ValueError):
    """A data set cannot be used as it is; the message names the file and the remedy."""


class Raster:
    """An open raster with the errors of this package. A context manager.

    Raises:
        DataError: the file is missing or no raster.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                self.file = rasterio.open(path)
        except (RasterioError, OSError) as error:
            what = "is no raster that GDAL can read" if path.exists() else "does not exist"
            raise DataError(f"{path} {what}: check the download ({error})") from error

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_error: object) -> None:
        self.file.close()

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        return self.file.height, self.file.width

    @property
    def gsd_m(self) -> float | None:
        """Ground sampling distance; None without a metric coordinate system."""
        crs = self.file.crs
        if crs is None or not crs.is_projected:
            return None
        return float(abs(self.file.transform.a) * crs.linear_units_factor[1])

    def read(
        self, bands: tuple[int, ...], *, like: Raster | None = None, nearest: bool = False
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Bands [B, H, W] as stored and where they hold data, bool [H, W].

        Args:
            bands: 1-based.
            like: the raster whose grid to take. Equal sizes without georeference count as one grid.
            nearest: how to resample; labels must not be mixed.

        Raises:
            DataError: a band is missing, the file is damaged, or the grids have nothing in common.
        """
        if max(bands) > self.file.count:
            raise DataError(f"{self.path} needs band {max(bands)}, it has {self.file.count}: pass the right raster")
        try:
            if like is None or self._on_grid_of(like):
                return self.file.read(bands), self._mask(self.file, bands)
            if self.file.crs is None or like.file.crs is None:
                raise DataError(
                    f"rasters of one scene need one size or a coordinate system; {self.path} is {self.size_px} px, "
                    f"{like.path} is {like.size_px} px: crop or georeference them"
                )
            with WarpedVRT(
                self.file,
                crs=like.file.crs,
                transform=like.file.transform,
                height=like.file.height,
                width=like.file.width,
                resampling=Resampling.nearest if nearest else Resampling.bilinear,
                add_alpha=self.file.nodata is None,
            ) as view:
                return view.read(bands), self._mask(view, bands)
        except (RasterioError, OSError) as error:
            raise DataError(
                f"{self.path} cannot be read: it is truncated or damaged; copy it again ({error})"
            ) from error

    def _on_grid_of(self, other: Raster) -> bool:
        if self.size_px != other.size_px:
            return False
        if self.file.crs is None or other.file.crs is None:
            return True
        return bool(self.file.crs == other.file.crs and self.file.transform.almost_equals(other.file.transform, 1e-3))

    @staticmethod
    def _mask(file: Any, bands: tuple[int, ...]) -> NDArray[np.bool_]:
        # a pixel that is valid in any band is valid, as in flight
        return np.asarray(file.read_masks(bands).any(axis=0))
