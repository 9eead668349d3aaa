"""The files of unfinished maps: made, and checked before a run is resumed and before it is published."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window

from engine.contract.errors import OutputError, ResumeError
from engine.digested_file import FilePrefix
from engine.rasters.checksums import checksums, read_checksums
from engine.rasters.gdal_errors import gdal_writing
from engine.rasters.georeference import GDAL_ERRORS, Grid, unreferenced_is_fine
from engine.rasters.map_kinds import MapKind

BLOCK_PX = 512
"""Side of the maps' blocks."""
BYTES_PER_PX = 4 / 3
"""Of one band: uncompressed, overviews a third more."""
COG_BYTES_PER_PX = 0.6
"""What a band of the COGs is allowed for in the check of free space; three maps took 0.4 to 1.2, nearly all of it
confidence, and probabilities of six classes 3.3."""


def overview_of(spool: Path) -> Path:
    """Where GDAL looks for the overviews of a file (https://gdal.org/drivers/raster/gtiff.html#overviews)."""
    return spool.with_name(f"{spool.name}.ovr")


def check_room(partial_dir: Path, grid: Grid, bands: int) -> None:
    """See that there is room for maps of so many bands.

    Raises:
        OutputError: there is not.
    """
    pixels = ceil(grid.width / BLOCK_PX) * ceil(grid.height / BLOCK_PX) * BLOCK_PX**2
    needed = round(pixels * bands * (BYTES_PER_PX + COG_BYTES_PER_PX))
    free = shutil.disk_usage(partial_dir).free
    if free < needed:
        raise OutputError(
            f"maps of {grid.width} x {grid.height} px need {needed / 1e6:,.0f} MB ({bands * BYTES_PER_PX:.3g} "
            f"bytes per pixel while the run lasts, about {bands * COG_BYTES_PER_PX:.3g} for the results); "
            f"{partial_dir} has {free / 1e6:,.0f} MB free: free space or pass another `output`"
        )


def create_spool(spool: Path, grid: Grid, kind: MapKind) -> None:
    """Make the file of a map.

    Raises:
        OutputError: the system refuses.
    """
    with gdal_writing(spool), unreferenced_is_fine():
        with rasterio.open(spool, "w", crs=grid.crs, transform=grid.transform, **_layout(grid, kind.count)) as file:
            if grid.gcps:
                file.gcps = (list(grid.gcps), grid.gcps_crs)
            if grid.rpcs is not None:
                file.rpcs = grid.rpcs
            if kind.colours is not None:
                file.write_colormap(1, dict(kind.colours))
            file.update_tags(**kind.tags)
            for band, name in enumerate(kind.bands or (kind.name,), start=1):
                file.set_band_description(band, name)
            if kind.scale is not None:
                file.scales = (kind.scale,) * kind.count
        # the tag comes second: GDAL would write it to every pixel, which takes seconds per gigabyte
        with rasterio.open(spool, "r+", driver="GTiff") as file:
            file.nodata = kind.nodata
        _reserve(spool)
        check_whole(spool, ())


def create_overview(spool: Path, grid: Grid, kind: MapKind) -> None:
    """Make the file of its overviews, where it is large enough to have any.

    Raises:
        OutputError: the system refuses.
    """
    factors = overview_factors(grid)
    if not factors:
        return
    path = overview_of(spool)
    half = Grid(width=-(-grid.width // 2), height=-(-grid.height // 2), crs=None, transform=None)
    with gdal_writing(path), unreferenced_is_fine():
        with rasterio.open(path, "w", **_layout(half, kind.count)):
            pass
        further = [factor // 2 for factor in factors[1:]]
        if further:
            with rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=BLOCK_PX), rasterio.open(path, "r+", driver="GTiff") as file:
                file.build_overviews(further, Resampling.nearest)  # of nothing yet: it lays out their blocks
        _reserve(path)
        check_whole(path, further)


def _layout(grid: Grid, bands: int) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "width": grid.width,
        "height": grid.height,
        "count": bands,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "interleave": "band",
        "SPARSE_OK": "FALSE",
        "BIGTIFF": "IF_SAFER",
    }


def _reserve(path: Path) -> None:
    with path.open("r+b") as stream:
        if hasattr(os, "posix_fallocate"):  # Linux; elsewhere the check of free space has to do
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def check_resumable(spool: Path, grid: Grid) -> None:
    """See that the file of an unfinished map is whole, and of that size.

    Raises:
        ResumeError: it is not.
    """
    again = "start anew with overwrite=True"
    try:
        with unreferenced_is_fine(), rasterio.open(spool, driver="GTiff") as file:
            width, height = file.width, file.height
        if (width, height) != (grid.width, grid.height):
            raise ResumeError(
                f"the unfinished map {spool} must have the rasters' size {grid.width} x {grid.height} px, "
                f"found {width} x {height}: {again}"
            )
        check_whole(spool, ())
    except (*GDAL_ERRORS, OSError, ValueError) as error:
        raise ResumeError(f"the unfinished map {spool} is missing or damaged ({error}): {again}") from error


def heads(spools: Sequence[Path]) -> bytes:
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


def check_content(spools: Sequence[Path], partial_dir: Path, mark: FilePrefix) -> None:
    """See that the spools hold what was written into them.

    Raises:
        ResumeError: they do not.
    """
    again = "start over with overwrite=True"
    try:
        head, written = read_checksums(partial_dir, mark, layers=len(spools))
        if heads(spools) != head:
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


def overview_factors(grid: Grid) -> list[int]:
    """1:2, 1:4 and so on, until a level fits one block."""
    factors: list[int] = []
    while max(grid.width, grid.height) > BLOCK_PX * 2 ** len(factors):
        factors.append(2 ** (len(factors) + 1))
    return factors


def check_whole(path: Path, factors: Sequence[int], trailer_bytes: int = 0) -> None:
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
