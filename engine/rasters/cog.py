"""The maps out: spools that survive a crash while the run lasts, Cloud-Optimised GeoTIFFs when it is whole.

Beside those with a palette lies a style with its names, for QGIS (:mod:`engine.rasters.style`).

A COG cannot be written in place (its overviews and block index come before the pixels), so windows go to *spools*
first: uncompressed tiled GeoTIFFs whose every byte, overviews included, is reserved when they are created. A window is
then overwritten where it lies, and a full disk shows before the first tile instead of after the last.

Compression is ZSTD level 1. On 16.8 Mpx of class and confidence maps as a network makes them (GDAL 3.10, one core of a
server CPU) the three maps took, per 512 x 512 px: ZSTD-1 3.9 ms for 19.0 MB in all, DEFLATE-1 6.7 ms for 19.1 MB,
DEFLATE-6 19.6 ms for 18.2 MB, LZW (the COG driver's default) 10.4 ms for 22.7 MB.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window

from engine.contract.bundle import NODATA_CLASS, ClassSpec
from engine.contract.errors import OutputError, ResumeError
from engine.contract.sensors import PROVENANCE_LABELS, PROVENANCE_RGB, Provenance
from engine.digested_file import FilePrefix, check_mark
from engine.grid import Window as GridWindow
from engine.map_block import MapBlock
from engine.probabilities import NODATA, STEPS
from engine.rasters.checksums import NAME as CHECKSUMS_NAME
from engine.rasters.checksums import Checksums, checksums, read_checksums
from engine.rasters.georeference import GDAL_ERRORS, Grid, unreferenced_is_fine
from engine.rasters.style import paletted_style

PROBABILITIES = "probabilities"
"""The map that is written when it is asked for."""
BLOCK_PX = 512
SPOOL_BYTES_PER_PX = 4 / 3
"""Of one band: uncompressed, overviews a third more."""
COG_BYTES_PER_PX = 0.6
"""What a band of the COGs is allowed for in the check of free space; three maps took 0.4 to 1.2, nearly all of it
confidence, and probabilities of six classes 3.3."""
COG_TRAILER_BYTES = 4
"""The COG layout repeats the last four bytes of every block after it."""

_gdal_log = logging.getLogger("rasterio._env")


@dataclass(frozen=True, kw_only=True)
class _Map:
    """One of the maps: uint8."""

    name: str
    nodata: int
    tags: Mapping[str, str]
    colours: Mapping[int, tuple[int, int, int]] | None
    labels: Mapping[int, str] = field(default_factory=dict)
    """Of the values that are no nodata, for the style; empty where the map has none."""
    bands: tuple[str, ...] = ()
    """What each holds; none is one band that holds what the map is called."""
    scale: float | None = None
    """What a value is multiplied by to be what it stands for."""
    creation: Mapping[str, str] = field(default_factory=dict)
    """Further creation options of the COG driver."""

    @property
    def count(self) -> int:
        """Bands."""
        return len(self.bands) or 1


def _maps(classes: Sequence[ClassSpec], *, probabilities: bool) -> tuple[_Map, ...]:
    """What makes the maps readable without this project; order as in :meth:`MapWriter.write`.

    GDAL's own category names would need a side-car file, so that names are tags: ``CLASS_0=building``.
    """
    maps = (
        _Map(
            name="classes",
            nodata=NODATA_CLASS,
            tags={f"CLASS_{index}": spec.name for index, spec in enumerate(classes)},
            colours={index: spec.rgb for index, spec in enumerate(classes)},
            labels={index: spec.name for index, spec in enumerate(classes)},
        ),
        _Map(
            name="confidence",
            nodata=0,  # cannot occur on a mapped pixel: the largest of C probabilities is at least 1 / C
            tags={"CONFIDENCE": "largest class probability x 255, rounded"},
            colours=None,
        ),
        _Map(
            name="provenance",
            nodata=Provenance.NONE,
            tags={f"PROVENANCE_{source.value}": label for source, label in PROVENANCE_LABELS.items()},
            colours={source.value: rgb for source, rgb in PROVENANCE_RGB.items()},
            labels={source.value: label for source, label in PROVENANCE_LABELS.items() if source},
        ),
    )
    if not probabilities:
        return maps
    return (
        *maps,
        _Map(
            name=PROBABILITIES,
            nodata=NODATA,
            tags={"PROBABILITIES": f"class probability x {STEPS}, rounded"},
            colours=None,
            bands=tuple(spec.name for spec in classes),
            scale=1 / STEPS,
            creation={"PREDICTOR": "YES"},  # a fifth less
        ),
    )


class MapWriter:
    """Writes ``classes.tif``, ``confidence.tif``, ``provenance.tif`` and, where asked for, ``probabilities.tif`` by
    windows. Use from one thread at a time.

    Every pixel has to be written once before :meth:`publish`; what was not holds 0.
    """

    def __init__(self, spools: Sequence[Path], maps: Sequence[_Map], grid: Grid, checksums: Checksums) -> None:
        self._spools, self._checksums = tuple(spools), checksums
        self._maps = tuple(maps)
        self._grid = grid
        self._files: list[Any] = []
        self._open()

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
        maps = _maps(classes, probabilities=probabilities)
        spools = [partial_dir / f"{each.name}.spool.tif" for each in maps]
        if resume:
            for spool in spools:
                _check_resumable(spool, grid)
            if mark is not None:
                check_mark(partial_dir / CHECKSUMS_NAME, mark)
                _check_content(spools, partial_dir, mark)
        else:
            with _writing(partial_dir):
                partial_dir.mkdir(parents=True, exist_ok=True)
                _check_room(partial_dir, grid, sum(each.count for each in maps))
            for spool, each in zip(spools, maps, strict=True):
                _create_spool(spool, grid, each)
        with _writing(partial_dir):
            checksums = Checksums(partial_dir, _heads(spools), mark if resume else None, layers=len(maps))
        return cls(spools, maps, grid, checksums)

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
        window = Window(col, row, width, height)
        for spool, file, layer in zip(self._spools, self._files, layers, strict=True):
            with _writing(spool):
                file.write(layer.reshape(-1, height, width), window=window)
        with _writing(self._spools[0].parent):
            self._checksums.add(row, col, layers)

    def written(self) -> Iterator[MapBlock]:
        """What the maps hold by now, in strips of blocks; pixels that are still to come look as if nothing saw them.

        Raises:
            OutputError: the system refuses.
        """
        for row in range(0, self._grid.height, BLOCK_PX):
            window = Window(0, row, self._grid.width, min(BLOCK_PX, self._grid.height - row))
            with _writing(self._spools[0].parent):
                classes, confidence, provenance = (file.read(1, window=window) for file in self._files[:3])
            classes[provenance == Provenance.NONE] = NODATA_CLASS
            yield MapBlock(
                window=GridWindow(row=row, col=0, height=window.height, width=window.width),
                classes=classes,
                confidence=confidence,
                provenance=provenance,
            )

    def flush(self) -> None:
        """Wait until everything written so far is on the disk; after it neither a kill nor a power cut loses any.

        Raises:
            OutputError: the system refuses.
        """
        self._close_maps()  # rasterio has no other way to empty GDAL's cache
        for spool in self._spools:
            with _writing(spool):
                _settle(spool)
        with _writing(self._spools[0].parent):
            self._checksums.sync()
        self._open()

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
        self.close()
        factors = _overview_factors(self._grid)
        maps = [output_dir / f"{each.name}.tif" for each in self._maps]
        styles = {
            output_dir / f"{each.name}.qml": paletted_style(each.labels, each.colours)
            for each in self._maps
            if each.colours is not None
        }
        unfinished = {target: target.with_name(f".{target.name}.partial") for target in (*maps, *styles)}
        try:
            with _writing(output_dir), unreferenced_is_fine():
                output_dir.mkdir(parents=True, exist_ok=True)
                for done, (spool, target, each) in enumerate(zip(self._spools, maps, self._maps, strict=True), start=1):
                    temporary = unfinished[target]
                    # ready-made overviews halve the time of the COG driver, which builds them in a compressed copy
                    with rasterio.open(spool, "r+", driver="GTiff") as file:
                        if factors:
                            file.build_overviews(factors, Resampling.nearest)
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
                    _check_whole(temporary, factors, COG_TRAILER_BYTES)
                    _settle(temporary)
                    if progress is not None:
                        progress(done / len(maps))
                for target, style in styles.items():
                    unfinished[target].write_bytes(style)
                    _settle(unfinished[target])
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
            self._close_maps()
        finally:
            self._checksums.close()

    def _close_maps(self) -> None:
        refused: list[OutputError] = []
        while self._files:
            try:
                with _writing(self._spools[len(self._files) - 1]):
                    self._files.pop().close()
            except OutputError as error:
                refused.append(error)
        if refused:
            raise refused[-1]

    def _open(self) -> None:
        with unreferenced_is_fine():
            for spool in self._spools:
                with _writing(spool):
                    self._files.append(rasterio.open(spool, "r+", driver="GTiff"))

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Errors(logging.Handler):
    """Collects what GDAL reports in one thread."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of a failure."""
        if record.thread == self._thread and "GDAL signalled an error" in record.msg:
            self.messages.append(record.getMessage())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn every failure to write into an OutputError.

    Where blocks are written late, when a dataset is closed or overviews are built, rasterio logs GDAL's errors as
    information and raises nothing: so the log is listened to.
    """
    errors, level, propagate = _Errors(), _gdal_log.level, _gdal_log.propagate
    _gdal_log.addHandler(errors)
    _gdal_log.propagate = False  # the error says it once
    _gdal_log.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
        if errors.messages:
            raise OSError(errors.messages[0])
    # rasterio stumbles over its own error when a file it should update is no raster: TypeError
    except (*GDAL_ERRORS, OSError, TypeError) as error:
        raise OutputError(
            f"{path} cannot be written ({error}): check free space and permissions, or pass another `output`"
        ) from error
    finally:
        _gdal_log.removeHandler(errors)
        _gdal_log.setLevel(level)
        _gdal_log.propagate = propagate


def _check_room(partial_dir: Path, grid: Grid, bands: int) -> None:
    pixels = ceil(grid.width / BLOCK_PX) * ceil(grid.height / BLOCK_PX) * BLOCK_PX**2
    needed = round(pixels * bands * (SPOOL_BYTES_PER_PX + COG_BYTES_PER_PX))
    free = shutil.disk_usage(partial_dir).free
    if free < needed:
        raise OutputError(
            f"maps of {grid.width} x {grid.height} px need {needed / 1e6:,.0f} MB ({bands * SPOOL_BYTES_PER_PX:.3g} "
            f"bytes per pixel while the run lasts, about {bands * COG_BYTES_PER_PX:.3g} for the results); "
            f"{partial_dir} has {free / 1e6:,.0f} MB free: free space or pass another `output`"
        )


def _create_spool(spool: Path, grid: Grid, each: _Map) -> None:
    factors = _overview_factors(grid)
    with _writing(spool), unreferenced_is_fine():
        with rasterio.open(
            spool,
            "w",
            driver="GTiff",
            width=grid.width,
            height=grid.height,
            count=each.count,
            dtype="uint8",
            crs=grid.crs,
            transform=grid.transform,
            tiled=True,
            blockxsize=BLOCK_PX,
            blockysize=BLOCK_PX,
            SPARSE_OK="FALSE",
            BIGTIFF="IF_SAFER",
        ) as file:
            if grid.gcps:
                file.gcps = (list(grid.gcps), grid.gcps_crs)
            if grid.rpcs is not None:
                file.rpcs = grid.rpcs
            if each.colours is not None:
                file.write_colormap(1, dict(each.colours))
            file.update_tags(**each.tags)
            for band, name in enumerate(each.bands or (each.name,), start=1):
                file.set_band_description(band, name)
            if each.scale is not None:
                file.scales = (each.scale,) * each.count
        # the tag comes second: GDAL would write it to every pixel, which takes seconds per gigabyte
        with rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=BLOCK_PX), rasterio.open(spool, "r+", driver="GTiff") as file:
            file.nodata = each.nodata
            if factors:
                file.build_overviews(factors, Resampling.nearest)  # of nothing yet: it lays out their blocks
        with spool.open("r+b") as stream:
            if hasattr(os, "posix_fallocate"):  # Linux; elsewhere the check of free space has to do
                os.posix_fallocate(stream.fileno(), 0, spool.stat().st_size)
        _check_whole(spool, factors)


def _check_resumable(spool: Path, grid: Grid) -> None:
    again = "start anew with overwrite=True"
    try:
        with unreferenced_is_fine(), rasterio.open(spool, driver="GTiff") as file:
            width, height = file.width, file.height
        if (width, height) != (grid.width, grid.height):
            raise ResumeError(
                f"the unfinished map {spool} must have the rasters' size {grid.width} x {grid.height} px, "
                f"found {width} x {height}: {again}"
            )
        _check_whole(spool, _overview_factors(grid))
    except (*GDAL_ERRORS, OSError, ValueError) as error:
        raise ResumeError(f"the unfinished map {spool} is missing or damaged ({error}): {again}") from error


def _heads(spools: Sequence[Path]) -> bytes:
    """SHA-256 of what the spools say of themselves, pixels left out."""
    digest = hashlib.sha256()
    with unreferenced_is_fine():
        for spool in spools:
            with rasterio.open(spool, driver="GTiff") as file:
                points, crs = file.gcps
                told = (
                    *(file.width, file.height, file.count, file.dtypes, file.nodata, file.block_shapes),
                    *(None if file.crs is None else file.crs.to_wkt(), tuple(file.transform)),
                    *([(p.row, p.col, p.x, p.y) for p in points], None if crs is None else crs.to_wkt()),
                    *(file.rpcs, file.colorinterp, file.descriptions, sorted(file.tags().items())),
                    file.colormap(1) if ColorInterp.palette in file.colorinterp else None,
                )
                digest.update(repr(told).encode(errors="replace"))
    return digest.digest()


def _check_content(spools: Sequence[Path], partial_dir: Path, mark: FilePrefix) -> None:
    """See that the spools hold what was written into them."""
    again = "start over with overwrite=True"
    try:
        head, written = read_checksums(partial_dir, mark, layers=len(spools))
        if _heads(spools) != head:
            raise ResumeError(f"the unfinished maps in {partial_dir} are damaged: {again}")
        with ExitStack() as stack, unreferenced_is_fine():
            files = [stack.enter_context(rasterio.open(spool, driver="GTiff")) for spool in spools]
            for (row, col, height, width), sums in written.items():
                window = Window(col, row, width, height)
                found = checksums([file.read(window=window) for file in files])
                if found != sums:
                    spool = next(spool for spool, a, b in zip(spools, found, sums, strict=True) if a != b)
                    raise ResumeError(
                        f"the unfinished map {spool} does not hold what was written at row {row}, column {col}: {again}"
                    )
    except (*GDAL_ERRORS, OSError, ValueError) as error:
        raise ResumeError(f"the unfinished maps in {partial_dir} cannot be read ({error}): {again}") from error


def _overview_factors(grid: Grid) -> list[int]:
    """1:2, 1:4 and so on, until a level fits one block."""
    factors: list[int] = []
    while max(grid.width, grid.height) > BLOCK_PX * 2 ** len(factors):
        factors.append(2 ** (len(factors) + 1))
    return factors


def _check_whole(path: Path, factors: Sequence[int], trailer_bytes: int = 0) -> None:
    """See that every block of every level is in the file: GDAL does not tell when the last bytes are missing.

    Raises:
        OSError: a level or block is missing, or reaches beyond the end of the file.
    """
    size = path.stat().st_size
    with unreferenced_is_fine(), rasterio.open(path) as file:
        # GDAL reports the rounded quotient of the widths, which for a large raster is not quite the factor
        if len(file.overviews(1)) != len(factors):
            raise OSError(f"{path.name} has overviews 1:{file.overviews(1)}, expected 1:{list(factors)}")
        for overview, factor in [(None, 1), *enumerate(factors)]:
            for row, col in np.ndindex(ceil(file.height / factor / BLOCK_PX), ceil(file.width / factor / BLOCK_PX)):
                offset, length = (
                    int(file.get_tag_item(f"BLOCK_{item}_{col}_{row}", "TIFF", bidx=1, ovr=overview) or 0)
                    for item in ("OFFSET", "SIZE")
                )
                if not offset or offset + length + trailer_bytes > size:
                    raise OSError(f"{path.name} ends at {size} bytes, before its block {col}, {row} of 1:{factor}")


def _settle(path: Path) -> None:
    """Wait until the file is on the disk: after the rename it stands for a finished run, power cut or not."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
