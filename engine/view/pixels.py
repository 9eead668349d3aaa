"""Pictures of maps and inputs in squares, for a map in the browser.

A square of level ``z`` shows ``TILE_PX * 2**z`` map pixels a side by every ``2**z``-th of them: never a mean, so that
what is seen is in the map.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.contract.bundle import ClassSpec
from engine.contract.errors import GridError
from engine.contract.sensors import Sensor
from engine.grid import Window
from engine.rasters.backdrop import Backdrop, BaseLayer
from engine.rasters.map_reader import MAPS, MapReader
from engine.report.pictures import Colouring, by_class, by_confidence, by_provenance
from engine.view.canvas import LiveCanvas
from engine.view.flight import CELL_PX, ShownFrame

TILE_PX = CELL_PX
BASE = "base"
"""The layer that no sensor saw."""
MAX_LEVEL = 24
OPEN_FRAMES = 4
"""Frames whose files are kept open."""
PICTURES_BYTES = 64 << 20
"""Pictures that are kept for the next browser."""
JPEG_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One square, encoded."""

    media_type: str
    content: bytes


class Pictures:
    """Those drawn last, by what they show and its age. Use from one thread at a time."""

    def __init__(self, limit_bytes: int = PICTURES_BYTES) -> None:
        self._pictures: OrderedDict[tuple[Any, ...], Picture] = OrderedDict()
        self._limit, self.size = limit_bytes, 0

    def get(self, key: tuple[Any, ...]) -> Picture | None:
        """The picture, if it is still there."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def put(self, key: tuple[Any, ...], picture: Picture) -> None:
        """Keep it; the one that was asked for longest ago makes room."""
        if key not in self._pictures:
            self._pictures[key] = picture
            self.size += len(picture.content)
        while self.size > self._limit:
            _, oldest = self._pictures.popitem(last=False)
            self.size -= len(oldest.content)


class MapPixels:
    """The maps of all frames. Use from one thread at a time.

    Args:
        output: of the run.
        canvas: holds the frame under way; None when all are published.
    """

    def __init__(self, output: Path, canvas: LiveCanvas | None) -> None:
        self._output, self._canvas = output, canvas
        self._readers: OrderedDict[int, MapReader] = OrderedDict()
        self._pictures = Pictures()

    def picture(
        self, frame: ShownFrame, name: str, window: Window, step: int, version: int, classes: Sequence[ClassSpec]
    ) -> Picture:
        """A square of a map.

        Raises:
            RasterOpenError: its file is missing or damaged.
        """
        key = (frame.number, name, window, step, version)
        picture = self._pictures.get(key)
        if picture is None:
            picture = paletted(self.values(frame, name, window, step), colouring(name, classes))
            self._pictures.put(key, picture)
        return picture

    def values(self, frame: ShownFrame, name: str, window: Window, step: int) -> NDArray[np.uint8]:
        """Every ``step``-th pixel of a window of one map, uint8 [h, w].

        Raises:
            RasterOpenError: its file is missing or damaged.
        """
        if not frame.published and self._canvas is not None:
            return self._canvas.read(MAPS.index(name), frame.shape, window, step)
        return self._reader(frame).every(name, window, step)

    def _reader(self, frame: ShownFrame) -> MapReader:
        if frame.number not in self._readers:
            while len(self._readers) >= OPEN_FRAMES:
                self._readers.popitem(last=False)[1].close()
            self._readers[frame.number] = MapReader(self._output / frame.stamp)
        self._readers.move_to_end(frame.number)
        return self._readers[frame.number]


class InputPixels:
    """What the sensors saw. Use from one thread at a time.

    Args:
        drivers: see :func:`engine.rasters.opening.open_raster`; None trusts the names of the rasters.
        base: what else may lie under a map, see :class:`engine.rasters.backdrop.BaseLayer`; empty: nothing.
    """

    def __init__(self, drivers: Sequence[str] | None, base: str = "") -> None:
        self._drivers, self._base = drivers, BaseLayer(base) if base else None
        self._backdrops: OrderedDict[int, Backdrop] = OrderedDict()
        self._pictures = Pictures()

    def picture(self, frame: ShownFrame, sensor: Sensor, window: Window, step: int) -> Picture:
        """A square of what a sensor saw.

        Raises:
            InputError: its raster is gone.
        """
        key = (frame.number, sensor, window, step)
        picture = self._pictures.get(key)
        if picture is None:
            backdrop = self._backdrop(frame)
            values, valid = backdrop.read(sensor, window, step)
            if sensor is Sensor.NDSM:
                grey = 32 + np.clip(np.nan_to_num(values[0]) / backdrop.top_m(), 0, 1) * 223
                values = np.broadcast_to(grey, (3, *grey.shape))
            values = np.rint(np.nan_to_num(values)).clip(0, 255).astype(np.uint8)  # a warped view holds floats
            picture = photograph(np.moveaxis(values, 0, 2), valid)
            self._pictures.put(key, picture)
        return picture

    def base(self, frame: ShownFrame, window: Window, step: int) -> Picture:
        """A square of the base layer.

        Raises:
            InputError: there is none, or it does not answer.
        """
        if self._base is None:
            raise GridError("there is no base layer: name one with --base-layer")
        key = (frame.number, BASE, window, step)
        picture = self._pictures.get(key)
        if picture is None:
            values, valid = self._base.read(frame.grid, window, step)
            picture = photograph(np.moveaxis(values, 0, 2), valid)
            self._pictures.put(key, picture)
        return picture

    def _backdrop(self, frame: ShownFrame) -> Backdrop:
        if frame.number not in self._backdrops:
            while len(self._backdrops) >= OPEN_FRAMES:
                self._backdrops.popitem(last=False)[1].close()
            self._backdrops[frame.number] = Backdrop(frame.inputs, frame.grid, self._drivers)
        self._backdrops.move_to_end(frame.number)
        return self._backdrops[frame.number]


def square(frame: ShownFrame, level: int, x: int, y: int) -> Window | None:
    """The part of a frame that a square shows; None where it lies outside."""
    side = TILE_PX << min(level, MAX_LEVEL)
    row, col = y * side, x * side
    if level > MAX_LEVEL or not (0 <= row < frame.grid.height and 0 <= col < frame.grid.width):
        return None
    return Window(row=row, col=col, height=min(side, frame.grid.height - row), width=min(side, frame.grid.width - col))


def version(frame: ShownFrame, window: Window) -> int:
    """Sequence number of the last change in a window."""
    rows = slice(window.row // CELL_PX, -(-(window.row + window.height) // CELL_PX))
    cols = slice(window.col // CELL_PX, -(-(window.col + window.width) // CELL_PX))
    return int(frame.news[rows, cols].max())


def colouring(name: str, classes: Sequence[ClassSpec]) -> Colouring:
    """How a map is drawn, as in the report."""
    drawn: Mapping[str, Colouring] = {"provenance": by_provenance(), "confidence": by_confidence()}
    return by_class(classes) if name == "classes" else drawn[name]


def paletted(values: NDArray[np.uint8], colours: Colouring) -> Picture:
    """A square of a map as PNG; beyond the map it is transparent, as what is not mapped."""
    image = colours(values)
    if image.size != (TILE_PX, TILE_PX):
        whole = Image.new("P", (TILE_PX, TILE_PX), image.info["transparency"])
        whole.putpalette(image.getpalette() or [])
        whole.info["transparency"] = image.info["transparency"]
        whole.paste(image, (0, 0))
        image = whole
    return _encoded(image, "PNG", compress_level=1)


def photograph(values: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Picture:
    """A square of an image: as JPEG where it is whole, else as PNG with holes."""
    if values.shape[:2] == (TILE_PX, TILE_PX) and valid.all():
        return _encoded(Image.fromarray(np.ascontiguousarray(values)), "JPEG", quality=JPEG_QUALITY)
    whole = np.zeros((TILE_PX, TILE_PX, 4), np.uint8)
    height, width = valid.shape
    whole[:height, :width, :3], whole[:height, :width, 3] = values, np.where(valid, 255, 0)
    return _encoded(Image.fromarray(whole), "PNG", compress_level=1)


def _encoded(image: Image.Image, kind: str, **options: Any) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Picture(media_type=f"image/{kind.lower()}", content=buffer.getvalue())
