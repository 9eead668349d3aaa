"""The published maps of a run, read back by windows or in small; what :mod:`engine.rasters.cog` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window as RasterWindow

from engine.contract.bundle import ClassSpec
from engine.contract.errors import RasterOpenError
from engine.grid import Window
from engine.rasters.georeference import GDAL_ERRORS, Grid, unreferenced_is_fine
from engine.rasters.names import would_wait

MAPS = ("classes", "confidence", "provenance")


class MapReader:
    """``classes.tif``, ``confidence.tif`` and ``provenance.tif`` of one folder. Use from one thread at a time.

    Args:
        folder: where they lie.
        more: names of maps beside these that are to be read as well.

    Raises:
        RasterOpenError: one is missing or unreadable, or they differ in size.
    """

    def __init__(self, folder: Path, more: Iterable[str] = ()) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        with ExitStack() as stack, unreferenced_is_fine():
            for name in (*MAPS, *more):
                path = folder / f"{name}.tif"
                if would_wait(path):
                    raise RasterOpenError(f"a map is a file; {path} is a pipe, a socket or a device: run it again")
                try:
                    self._files[name] = stack.enter_context(rasterio.open(path))
                except GDAL_ERRORS as error:
                    raise RasterOpenError(
                        f"a finished run holds {', '.join(f'{each}.tif' for each in MAPS)}; {path} cannot be read "
                        f"({error}): pass the folder that `python -m engine.run --output` wrote"
                    ) from error
            sizes = {name: (file.width, file.height) for name, file in self._files.items()}
            if len(set(sizes.values())) > 1:
                raise RasterOpenError(f"the maps of one run have one size; {folder} holds {sizes}: run it again")
            self.grid = Grid.of(self._files["classes"])
            self._open = stack.pop_all()
        self.width, self.height = sizes["classes"]

    @property
    def classes(self) -> tuple[ClassSpec, ...]:
        """Names and colours of the classes, as the map itself carries them."""
        file = self._files["classes"]
        tags, colours = file.tags(), file.colormap(1)
        names = {int(tag.removeprefix("CLASS_")): name for tag, name in tags.items() if tag.startswith("CLASS_")}
        return tuple(ClassSpec(name=names[index], rgb=colours[index][:3]) for index in sorted(names))

    def read(self, window: Window) -> Mapping[str, NDArray[np.uint8]]:
        """All three maps in a window inside the raster, uint8 [h, w] each, by the names in :data:`MAPS`.

        Raises:
            RasterOpenError: a file is truncated or damaged.
        """
        return {name: self._read(name, window, (window.height, window.width)) for name in MAPS}

    def layers(self, window: Window) -> list[NDArray[np.uint8]]:
        """Everything in a window inside the raster, in the order of the maps: uint8 [h, w], of several bands [C, h, w].

        Raises:
            RasterOpenError: a file is truncated or damaged.
        """
        shape = (window.height, window.width)
        bands = {name: file.count for name, file in self._files.items() if "1:" not in name}
        return [self._read(name, window, shape, None if count > 1 else 1) for name, count in bands.items()]

    def small(self, name: str, window: Window, height: int, width: int) -> NDArray[np.uint8]:
        """One map in a window inside the raster, uint8 [height, width]: single pixels of it, no means.

        Raises:
            RasterOpenError: the file is truncated or damaged.
        """
        return self._read(name, window, (height, width))

    def every(self, name: str, window: Window, step: int) -> NDArray[np.uint8]:
        """Every ``step``-th row and column of one map, uint8 [h, w]: from an overview where the file has it.

        Args:
            name: of the map.
            window: inside the raster; begins at multiples of ``step``.
            step: a power of two.

        Raises:
            RasterOpenError: the file is truncated or damaged.
        """
        height, width = -(-window.height // step), -(-window.width // step)
        level = step.bit_length() - 2
        if level < 0:
            return self._read(name, window, (height, width))
        if level >= len(self._files[name].overviews(1)):
            return np.ascontiguousarray(self._read(name, window, (window.height, window.width))[::step, ::step])
        key = f"{name} 1:{step}"
        if key not in self._files:
            with unreferenced_is_fine():
                path = self._folder / f"{name}.tif"
                self._files[key] = self._open.enter_context(rasterio.open(path, overview_level=level))
        place = Window(row=window.row // step, col=window.col // step, height=height, width=width)
        return self._read(key, place, (height, width))

    def _read(self, name: str, window: Window, shape: tuple[int, int], band: int | None = 1) -> NDArray[np.uint8]:
        place = RasterWindow(window.col, window.row, window.width, window.height)
        try:
            values: NDArray[np.uint8] = self._files[name].read(
                band,
                window=place,
                out_shape=shape if band is not None else (self._files[name].count, *shape),
                resampling=Resampling.nearest,
            )
        except GDAL_ERRORS as error:
            raise RasterOpenError(
                f"{self._files[name].name} cannot be read: it is truncated or damaged; run it again ({error})"
            ) from error
        return values

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._open.close()

    def __enter__(self) -> MapReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
