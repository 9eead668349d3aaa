"""The maps out: spools that survive a crash while the run lasts, Cloud-Optimised GeoTIFFs when it is whole.

Beside those with a palette lies a style with its names, for QGIS (:mod:`engine.rasters.style`).

A COG cannot be written in place (its overviews and block index come before the pixels), so windows go to *spools*
first (:mod:`engine.rasters.spools`), which get their first overview while they grow. What is left to publishing is
compression.

Compression is ZSTD level 1. On 16.8 Mpx of class and confidence maps as a network makes them (GDAL 3.10, one core of a
server CPU) the three maps took, per 512 x 512 px: ZSTD-1 3.9 ms for 19.0 MB in all, DEFLATE-1 6.7 ms for 19.1 MB,
DEFLATE-6 19.6 ms for 18.2 MB, LZW (the COG driver's default) 10.4 ms for 22.7 MB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray

from engine.contract.bundle import NODATA_CLASS, ClassSpec
from engine.contract.sensors import Provenance
from engine.digested_file import FilePrefix, check_mark
from engine.grid import Window
from engine.map_block import MapBlock
from engine.rasters.checksums import NAME as CHECKSUMS_NAME
from engine.rasters.checksums import Checksums
from engine.rasters.gdal_errors import gdal_writing, settle
from engine.rasters.georeference import Grid, unreferenced_is_fine
from engine.rasters.map_kinds import MapKind, map_kinds
from engine.rasters.spool_files import (
    BLOCK_PX,
    check_content,
    check_resumable,
    check_room,
    check_whole,
    create_overview,
    create_spool,
    heads,
    overview_factors,
    overview_of,
)
from engine.rasters.spools import Spools
from engine.rasters.style import paletted_style

COG_TRAILER_BYTES = 4
"""The COG layout repeats the last four bytes of every block after it."""


class MapWriter:
    """Writes ``classes.tif``, ``confidence.tif``, ``provenance.tif`` and, where asked for, ``probabilities.tif`` by
    windows. Use from one thread at a time.

    Every pixel has to be written once before :meth:`publish`; what was not holds 0.
    """

    def __init__(self, spools: Spools, maps: Sequence[MapKind], grid: Grid, checksums: Checksums) -> None:
        self._spools, self._checksums = spools, checksums
        self._maps, self._grid = tuple(maps), grid

    @classmethod
    def create(
        cls,
        partial_dir: Path,
        grid: Grid,
        classes: Sequence[ClassSpec],
        *,
        resume: bool,
        mark: FilePrefix | None = None,
        probabilities: bool = False,
    ) -> MapWriter:
        """Create the spools in ``partial_dir`` (made if missing), or open those of an interrupted run.

        Args:
            partial_dir: of the unfinished run.
            grid: of the maps.
            classes: for the maps' palette and tags.
            resume: go on with the spools that are there.
            mark: the windows that the journal vouches for, when resuming; None of an empty map.
            probabilities: write the probability of each class as well.

        Raises:
            OutputError: the folder is not writable, or the disk has no room for spools and maps.
            ResumeError: ``resume`` is set, and the spools are missing, of another size, or not what was written.
        """
        maps = map_kinds(classes, probabilities=probabilities)
        paths = [partial_dir / f"{each.name}.spool.tif" for each in maps]
        if resume:
            for path in paths:
                with gdal_writing(partial_dir):
                    overview_of(path).unlink(missing_ok=True)  # made anew, out of the maps
                check_resumable(path, grid)
            if mark is not None:
                check_mark(partial_dir / CHECKSUMS_NAME, mark)
                check_content(paths, partial_dir, mark)
        else:
            with gdal_writing(partial_dir):
                partial_dir.mkdir(parents=True, exist_ok=True)
                check_room(partial_dir, grid, sum(each.count for each in maps))
            for path, each in zip(paths, maps, strict=True):
                create_spool(path, grid, each)
        for path, each in zip(paths, maps, strict=True):
            create_overview(path, grid, each)
        with gdal_writing(partial_dir):
            checksums = Checksums(partial_dir, heads(paths), mark if resume else None, layers=len(maps))
        return cls(Spools(paths, maps, grid, resumed=resume), maps, grid, checksums)

    @property
    def mark(self) -> FilePrefix:
        """What has been written, for the journal."""
        return self._checksums.mark

    def write(self, row: int, col: int, *layers: NDArray[np.uint8]) -> None:
        """Write one window at (row, col).

        Args:
            row, col: its first pixel.
            layers: classes, confidence and provenance, uint8 [h, w] each; where they are written, probabilities, uint8
                [C, h, w].

        Raises:
            ValueError: the window leaves the grid, or the arrays are not uint8 of one shape.
            OutputError: the system refuses.
        """
        height, width = layers[0].shape[-2:]
        shapes = [(height, width) if each.count == 1 else (each.count, height, width) for each in self._maps]
        if [layer.shape for layer in layers] != shapes or any(layer.dtype != np.uint8 for layer in layers):
            found = ", ".join(f"{layer.dtype} {layer.shape}" for layer in layers)
            raise ValueError(f"the maps must be uint8 of the shapes {shapes}, received {found}")
        if row < 0 or col < 0 or row + height > self._grid.height or col + width > self._grid.width:
            raise ValueError(
                f"a window must lie inside {self._grid.height} rows x {self._grid.width} columns, received "
                f"{height} x {width} at row {row}, column {col}"
            )
        self._spools.add(row, col, layers)
        with gdal_writing(self._spools.paths[0].parent):
            self._checksums.add(row, col, layers)

    def written(self) -> Iterator[MapBlock]:
        """What the maps hold by now, in strips of blocks; pixels that are still to come look as if nothing saw them.

        Raises:
            OutputError: the system refuses.
        """
        for row in range(0, self._grid.height, BLOCK_PX):
            height = min(BLOCK_PX, self._grid.height - row)
            classes, confidence, provenance = (layer[0] for layer in self._spools.read(row, height)[:3])
            classes[provenance == Provenance.NONE] = NODATA_CLASS
            yield MapBlock(
                window=Window(row=row, col=0, height=height, width=self._grid.width),
                classes=classes,
                confidence=confidence,
                provenance=provenance,
            )

    def flush(self) -> None:
        """Wait until everything written so far is on the disk; after it neither a kill nor a power cut loses any.

        Raises:
            OutputError: the system refuses.
        """
        self._spools.flush()
        with gdal_writing(self._spools.paths[0].parent):
            self._checksums.sync()

    def publish(self, output_dir: Path, *, progress: Callable[[float], None] | None = None) -> list[Path]:
        """Turn the spools into COGs in ``output_dir``, styles beside them, all or none, and close the writer.

        The spools stay.

        Overviews are every second pixel of the level below: an average would invent classes and confidences.

        Args:
            output_dir: made if missing; maps of the same names are replaced.
            progress: called with the share that is done, 0..1.

        Returns:
            The maps, in the order of :meth:`write`.

        Raises:
            OutputError: the system refuses; ``output_dir`` is then as before, and publishing can be tried again.
        """
        self._checksums.close()
        self._spools.finish()
        maps = [output_dir / f"{each.name}.tif" for each in self._maps]
        styles = {
            output_dir / f"{each.name}.qml": paletted_style(each.labels, each.colours)
            for each in self._maps
            if each.colours is not None
        }
        unfinished = {target: target.with_name(f".{target.name}.partial") for target in (*maps, *styles)}
        try:
            with gdal_writing(output_dir), unreferenced_is_fine():
                output_dir.mkdir(parents=True, exist_ok=True)
                for done, (spool, target, each) in enumerate(
                    zip(self._spools.paths, maps, self._maps, strict=True), start=1
                ):
                    temporary = unfinished[target]
                    rasterio.shutil.copy(
                        spool,
                        temporary,
                        driver="COG",
                        BLOCKSIZE=BLOCK_PX,
                        COMPRESS="ZSTD",
                        LEVEL=1,
                        NUM_THREADS="ALL_CPUS",
                        **each.creation,
                    )
                    check_whole(temporary, overview_factors(self._grid), COG_TRAILER_BYTES)
                    settle(temporary)
                    if progress is not None:
                        progress(done / len(maps))
                for target, style in styles.items():
                    unfinished[target].write_bytes(style)
                    settle(unfinished[target])
                for target, temporary in unfinished.items():
                    os.replace(temporary, target)
        finally:
            for temporary in unfinished.values():
                with suppress(OSError):
                    temporary.unlink()
        return maps

    def close(self) -> None:
        """Close the spools; a second call does nothing.

        Raises:
            OutputError: the system refuses what was still to be written.
        """
        try:
            self._spools.close()
        finally:
            self._checksums.close()

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
