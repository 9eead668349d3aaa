"""The rasters that a map was made from, to be looked at: in small, and no further checked than that they can be read.

:class:`engine.rasters.raster.SensorRasters` reads what is mapped; it knows one resolution, and no pixel goes unjudged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from engine.contract.errors import GridError, RasterOpenError
from engine.contract.sensors import Sensor
from engine.grid import Window
from engine.rasters.georeference import GDAL_ERRORS, Grid, onto_grid, unreferenced_is_fine
from engine.rasters.names import RasterName, raster_name
from engine.rasters.opening import open_raster
from engine.rasters.stretch import Range, apply_stretch
from engine.record import GridUsed, RasterUsed

SAMPLE_PX = 512
"""Side of the small picture from which the range of heights is taken."""


@dataclass(frozen=True, kw_only=True)
class _BackdropLayer:
    view: Any
    bands: tuple[int, ...]
    scale: float
    stretch: tuple[Range, ...] | None = None

    def read(self, window: Window, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values [B, height, width] and where they are valid, bool [height, width]."""
        place = RasterWindow(window.col, window.row, window.width, window.height)
        shape = (len(self.bands), height, width)
        near = Resampling.nearest
        values = self.view.read(self.bands, window=place, out_shape=shape, resampling=near)
        masks = self.view.read_masks(self.bands, window=place, out_shape=shape, resampling=near)
        valid = masks.any(axis=0) & np.isfinite(values).all(axis=0)
        if self.stretch is not None:
            apply_stretch(values, self.stretch, shown := np.zeros(shape, np.uint8))
            return shown, valid
        return (values if self.scale == 1 else values * np.float32(self.scale)), valid


class Backdrop:
    """The sensors' rasters on the grid of their map. Use from one thread at a time.

    Args:
        inputs: as ``run.json`` describes them.
        grid: of the map.
        drivers: see :func:`engine.rasters.opening.open_raster`.
    """

    def __init__(
        self, inputs: Mapping[Sensor, RasterUsed], grid: GridUsed, drivers: Sequence[str] | None = None
    ) -> None:
        self._inputs, self._grid, self._drivers = inputs, _grid(grid), drivers
        self._layers: dict[Sensor, tuple[_BackdropLayer, ...]] = {}
        self._files = ExitStack()
        self._top_m: float | None = None

    def read(self, sensor: Sensor, window: Window, step: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """About every ``step``-th row and column of what a sensor saw.

        Returns:
            values [3, h, w] DN or [1, h, w] metres, and where they are valid, bool [h, w].

        Raises:
            RasterOpenError: it cannot be read any more.
            GridError: it does not lie on the map any more.
        """
        height, width = -(-window.height // step), -(-window.width // step)
        try:
            values, valid = (first := self._open(sensor)[0]).read(window, height, width)
            for other in self._open(sensor)[1:]:
                terrain, there = other.read(window, height, width)
                values, valid = values - terrain, valid & there
        except GDAL_ERRORS as error:
            raise RasterOpenError(f"{sensor} raster {first.view.name} cannot be read ({error})") from error
        return values, valid

    def top_m(self) -> float:
        """The height that is drawn white: the 99th percentile of a sample."""
        if self._top_m is None:
            side = max(self._grid.height, self._grid.width)
            whole = Window(row=0, col=0, height=self._grid.height, width=self._grid.width)
            values, valid = self.read(Sensor.NDSM, whole, max(1, math.ceil(side / SAMPLE_PX)))
            seen = values[0][valid]
            self._top_m = max(1.0, float(np.percentile(seen, 99))) if seen.size else 1.0
        return self._top_m

    def _open(self, sensor: Sensor) -> tuple[_BackdropLayer, ...]:
        if sensor not in self._layers:
            used = self._inputs[sensor]
            both = (used,) if used.minus is None else (used, used.minus)
            self._layers[sensor] = tuple(self._layer(sensor, each) for each in both)
        return self._layers[sensor]

    def _layer(self, sensor: Sensor, used: RasterUsed) -> _BackdropLayer:
        name = raster_name(used.path)
        with unreferenced_is_fine():
            file = self._files.enter_context(open_raster(sensor, name, self._drivers))
            if max(used.bands) > file.count:
                raise RasterOpenError(f"{sensor} raster {name} has {file.count} bands, it had {max(used.bands)}")
            view = onto_grid(file, self._grid, name=str(name), grid_name="the map")
            if view is not file:
                self._files.enter_context(view)
        return _BackdropLayer(view=view, bands=used.bands, scale=used.metres_per_unit or 1.0, stretch=used.stretch)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._files.close()


class BaseLayer:
    """What others know of the place: a raster, or a server of tiles, on the grid of a map. Use from one thread.

    Args:
        name: of a raster that GDAL opens, MBTiles among them; or the address of tiles in Web Mercator, as in
            ``https://host/{z}/{x}/{y}.png``. Nothing is asked of any other server, and nothing is kept on the disk.
    """

    def __init__(self, name: str) -> None:
        self._name, self._files = name, ExitStack()
        self._file: Any = None

    def read(self, grid: GridUsed, window: Window, step: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """About every ``step``-th pixel of a window of the map: uint8 [3, h, w], and where there is any, bool [h, w].

        Raises:
            RasterOpenError: the server or the file does not answer.
            GridError: the map lies nowhere on the earth.
        """
        place = _grid(grid)
        if place.crs is None or place.transform is None:
            raise GridError("a base layer needs a map that is georeferenced")
        height, width = -(-window.height // step), -(-window.width // step)
        transform = place.transform @ Affine.translation(window.col, window.row) @ Affine.scale(step)
        try:
            if self._file is None:
                with unreferenced_is_fine():
                    self._file = self._files.enter_context(open_raster("base layer", _opened_name(self._name)))
            bands = [1, 2, 3] if self._file.count >= 3 else [1, 1, 1]
            with WarpedVRT(
                self._file,
                crs=place.crs,
                transform=transform,
                width=width,
                height=height,
                resampling=Resampling.bilinear,
                add_alpha=True,
            ) as view:
                return view.read(bands), view.read(view.count) > 0
        except GDAL_ERRORS as error:
            raise RasterOpenError(f"the base layer {self._name} cannot be read ({error})") from error

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._files.close()


def _opened_name(name: str) -> RasterName:
    """For tiles a description of their server (https://gdal.org/en/stable/drivers/raster/wms.html)."""
    if "{z}" not in name:
        return raster_name(name)
    address = escape(name.replace("{", "${"))
    edge = 20037508.342789244
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}</ServerUrl></Service><DataWindow>'
        f"<UpperLeftX>-{edge}</UpperLeftX><UpperLeftY>{edge}</UpperLeftY>"
        f"<LowerRightX>{edge}</LowerRightX><LowerRightY>-{edge}</LowerRightY><TileLevel>19</TileLevel>"
        "<TileCountX>1</TileCountX><TileCountY>1</TileCountY><YOrigin>top</YOrigin></DataWindow>"
        "<Projection>EPSG:3857</Projection><BlockSizeX>256</BlockSizeX><BlockSizeY>256</BlockSizeY>"
        "<BandsCount>3</BandsCount><UserAgent>gemmnet-edge</UserAgent><Timeout>10</Timeout>"
        "<ZeroBlockHttpCodes>204,404</ZeroBlockHttpCodes></GDAL_WMS>"
    )


def _grid(used: GridUsed) -> Grid:
    """The grid that a record describes."""
    try:
        crs = None if used.crs is None else CRS.from_string(used.crs)
    except GDAL_ERRORS as error:
        raise GridError(f"the map's CRS is none that this installation knows ({error})") from error
    transform = None if used.transform is None else Affine(*used.transform)
    return Grid(width=used.width, height=used.height, crs=crs, transform=transform)
