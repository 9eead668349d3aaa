"""Reading rasters for training: whole bands, brought onto one grid, with what is measured where."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from engine.contract.errors import one_line
from engine.contract.tiff import unfinished


class DataError(ValueError):
    """A data set cannot be used as it is; the message names the file and the remedy, in one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class Raster:
    """An open raster with the errors of this package. A context manager.

    Raises:
        DataError: the file is missing or no raster, or what it says of itself is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                self.file = rasterio.open(path)
        except (RasterioError, OSError, ValueError, TypeError) as error:  # a name may be no UTF-8, or hold a NUL
            try:
                what = "is no raster that GDAL can read" if path.exists() else "does not exist"
            except OSError:
                what = "has a name that the file system refuses"
            raise DataError(f"{path} {what}: check the download ({error})") from error
        # GDAL only warns of tags that are cut off, and goes on without a scale or a nodata value
        missing = unfinished(path, tags_only=True) if self.file.driver in ("GTiff", "COG") else None
        if missing is not None:
            self.file.close()
            raise DataError(f"{path} is truncated or damaged: {missing}; copy it again")

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

    def factors(self, band: int) -> tuple[float, float]:
        """Scale and offset of the file's own tags; 1-based band.

        Raises:
            DataError: one of them is no number to compute with.
        """
        scale, offset = float(self.file.scales[band - 1]), float(self.file.offsets[band - 1])
        largest = float(np.finfo(np.float32).max)
        if not 0 < abs(scale) <= largest or not abs(offset) <= largest:
            raise DataError(
                f"{self.path} says scale {scale:g}, offset {offset:g}; they must be finite, and the scale not 0: "
                "correct them with `gdal_edit.py -scale VALUE -offset VALUE`"
            )
        return scale, offset

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
        if not set(bands) <= set(self.file.indexes):
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

    @property
    def _camera(self) -> tuple[Any, ...] | None:
        """The ground control points or the camera model that place an image without a transform."""
        if not self.file.transform.is_identity:
            return None
        points, crs = self.file.gcps
        placed = tuple((point.row, point.col, point.x, point.y) for point in points)
        return (placed, crs, self.file.rpcs) if placed or self.file.rpcs is not None else None

    def _on_grid_of(self, other: Raster) -> bool:
        if self is not other and self._camera != other._camera:
            placed = self if self._camera is not None else other
            raise DataError(
                f"rasters of one scene must lie on one grid; {placed.path} is placed by ground control points or a "
                "camera model: warp it first with `gdalwarp -tps` or `gdalwarp -rpc`"
            )
        if self.size_px != other.size_px:
            return False
        if self.file.crs is None or other.file.crs is None:
            return True
        return bool(self.file.crs == other.file.crs and self.file.transform.almost_equals(other.file.transform, 1e-3))

    @staticmethod
    def _mask(file: Any, bands: tuple[int, ...]) -> NDArray[np.bool_]:
        """As in flight: a pixel is valid that is valid in any band and not transparent.

        A band that is read is data, whatever its mark says; GDAL would use it as the mask of the others.
        """
        flags = [file.mask_flag_enums[band - 1] for band in bands]
        if all(MaskFlags.alpha in flag or MaskFlags.all_valid in flag for flag in flags):
            valid = np.ones((file.height, file.width), np.bool_)
        else:
            valid = np.asarray(file.read_masks(bands).any(axis=0))
        for band in file.indexes:
            if file.colorinterp[band - 1] == ColorInterp.alpha and band not in bands:
                valid &= file.read(band) > 0
        return valid
