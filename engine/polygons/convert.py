"""From the map of a finished run to a vector file: what ``engine.polygons`` and ``engine.run --polygons`` share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from engine.contract.atomic import write_whole
from engine.contract.errors import OutputError, UsageError, writing

SMALLEST_PX = 10
SIMPLIFY_PX = 1.0
SUFFIXES = (".gpkg", ".fgb", ".parquet")
INSTALL = "pip install 'gemmnet-edge[gis]'"


@dataclass(frozen=True, kw_only=True)
class Polygons:
    """What polygons are asked for.

    Raises:
        UsageError: the name tells no format, or a number makes no sense.
    """

    path: Path
    """Of the file; its suffix is one of :data:`SUFFIXES`."""
    smallest_px: int = SMALLEST_PX
    """Smaller areas are given to their largest neighbour."""
    simplify_px: float = SIMPLIFY_PX
    """Borders may move by so much."""
    overwrite: bool = False
    """Replace polygons of ours that are there."""

    def __post_init__(self) -> None:
        if self.path.suffix not in SUFFIXES:
            raise UsageError(
                f"polygons are written as {', '.join(SUFFIXES)}; received {self.path.name!r}: change the name"
            )
        if self.smallest_px < 1 or not 0 <= self.simplify_px < 100:
            raise UsageError(
                f"`smallest_px` is at least 1 and `simplify_px` lies in [0, 100), received {self.smallest_px} and "
                f"{self.simplify_px:g}"
            )

    def check(self) -> None:
        """See that the file can be written, before anything takes long.

        Raises:
            UsageError: the extra is missing, or a file is there.
            OutputError: the file that is there was not written by this project.
        """
        try:
            from engine.polygons.vector_file import is_ours
        except ImportError as error:
            raise UsageError(f"polygons need {error.name or error}: {INSTALL}") from error
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise UsageError(f"{self.path} exists: pass overwrite=True to replace it, or another name")
        if not is_ours(self.path):
            raise OutputError(f"{self.path} holds no polygons of this project: move it away, or pass another name")

    def write(self, folder: Path, *, bar: bool | None = None) -> int:
        """Turn a map into polygons; beside them lies a style for QGIS, unless one is there.

        Args:
            folder: of the map.
            bar: show how far it is on standard error; None where that is a terminal.

        Returns:
            How many there are.

        Raises:
            RasterOpenError: the map cannot be read.
            OutputError: the file cannot be written; what was there is left.
        """
        self.check()  # first of all: what is imported next needs the extra
        from engine.polygons.vector_file import write_areas
        from engine.rasters.georeference import CACHE_BYTES, gdal_environment
        from engine.rasters.map_reader import MAPS, MapReader
        from engine.rasters.polygons import MapArea, areas
        from engine.rasters.spool_files import BLOCK_PX
        from engine.rasters.style import categorised_style

        hidden = None if bar is None else not bar
        with ExitStack() as stack:
            maps = stack.enter_context(MapReader(folder))
            # Strips are lower than blocks: a row of blocks of each map must fit, or all are decoded again and again.
            row_bytes = len(MAPS) * maps.width * BLOCK_PX
            stack.enter_context(gdal_environment(max(CACHE_BYTES, 2 * row_bytes)))
            shown = stack.enter_context(tqdm(total=maps.height, unit="row", disable=hidden, leave=False))

            def found() -> Iterator[MapArea]:
                for area, rows in areas(maps, smallest_px=self.smallest_px, tolerance_px=self.simplify_px):
                    shown.update(rows - shown.n)
                    yield area

            count = write_areas(found(), self.path, maps.grid, maps.classes)
            style = self.path.with_suffix(".qml")
            if not os.path.lexists(style):
                with writing(style):
                    write_whole(style, categorised_style("class", {each.name: each.rgb for each in maps.classes}))
        return count
