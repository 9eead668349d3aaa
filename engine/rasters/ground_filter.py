"""The ground below a surface model: cloth simulation over its lowest points, for who has no terrain model.

The surface is read once, in strips, into the lowest height of each cell of about a metre. The lie of the land (an
opening as wide as the largest building, smoothed) is taken away first, for a cloth that falls on a hill hangs from its
top. Then the Cloth Simulation Filter says which cells are ground (Zhang et al. 2016, https://doi.org/10.3390/rs8060501,
by the authors' library ``cloth-simulation-filter``, of the extra ``ground``); between them the ground is interpolated
(GDAL's ``fillnodata``). How wrong it is: ``python -m benchmarks.ground``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.fill import fillnodata
from rasterio.io import MemoryFile

from engine.contract.errors import GridError, RasterFormatError, UsageError
from engine.rasters.georeference import Grid

log = logging.getLogger(__name__)

CELL_M = 1.0
MOST_CELLS = 4_000_000
"""Of a larger surface cells are coarser."""
STRIP_PX = 8_000_000
"""Surface pixels that are read at once."""
BUILDING_M = 40.0
"""What is wider than this is taken for a hill."""
CLOTH_M = 2.0
"""Distance of the cloth's knots."""
GROUND_M = 0.5
"""A cell so near to the cloth is ground."""
STEPS = 500
RIGID = 2
"""The library's word for gentle slopes: 1 is steep, 3 flat. Hills are gone before."""

Read = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.bool_]]]
"""Heights [h, W] in metres and where they are valid, of the rows from the first to the end."""


def ground_below(name: str, read: Read, grid: Grid) -> MemoryFile:
    """A terrain model in memory: float32 metres, NaN where there is no ground to be seen.

    Args:
        name: of the surface model, for messages.
        read: its rows.
        grid: that these are on.

    Raises:
        UsageError: the extra is missing.
        GridError: nothing says how large a pixel is.
        RasterFormatError: it holds no heights.
    """
    try:
        import CSF
        from scipy import ndimage
    except ImportError as error:
        raise UsageError(
            f"`ground` is found by {error.name}: `pip install 'gemmnet-edge[ground]'`, or pass a terrain model as `dtm`"
        ) from error
    if grid.gsd_m is None or grid.transform is None:
        raise GridError(
            f"`ground` needs a surface model in a known CRS, to know how wide a building is; {name} has none"
        )
    step = max(1, round(CELL_M / grid.gsd_m), int(np.ceil(np.sqrt(grid.width * grid.height / MOST_CELLS))))
    cell_m = step * grid.gsd_m
    lowest = _lowest(read, grid, step)
    seen = np.isfinite(lowest)
    if not seen.any():
        raise RasterFormatError(f"`ground` lies below heights, and {name} holds none: look at it with gdalinfo -stats")
    log.info("looking for the ground below %s, in %d x %d cells of %.2g m", name, *lowest.shape[::-1], cell_m)
    if not seen.all():
        index = ndimage.distance_transform_edt(~seen, return_distances=False, return_indices=True)
        lowest = lowest[tuple(index)]
    wide = max(3, round(BUILDING_M / cell_m))
    land = ndimage.grey_opening(lowest, size=(wide, wide), mode="nearest")
    land = ndimage.gaussian_filter(ndimage.uniform_filter(land, wide, mode="nearest"), wide / 4, mode="nearest")
    over = lowest - land
    cloth = CSF.CSF()
    cloth.params.bSloopSmooth, cloth.params.rigidness = True, RIGID
    cloth.params.cloth_resolution, cloth.params.class_threshold = max(CLOTH_M, 2 * cell_m), GROUND_M
    cloth.params.interations = STEPS  # as the library spells it
    rows, cols = np.nonzero(seen)
    cloth.setPointCloud(np.stack([cols * cell_m, rows * cell_m, over[seen]], axis=1).astype(np.float64))
    ground, others = CSF.VecInt(), CSF.VecInt()
    with _silent():
        cloth.do_filtering(ground, others, False)
    is_ground = np.zeros(lowest.shape, np.bool_)
    chosen = np.asarray(ground, np.int64)
    is_ground[rows[chosen], cols[chosen]] = True
    if not is_ground.any():
        raise RasterFormatError(f"`ground` of {name} is nowhere to be seen: pass a terrain model as `dtm`")
    filled = fillnodata(
        over.astype(np.float32), mask=is_ground.astype(np.uint8), max_search_distance=float(max(lowest.shape))
    )
    return _file(filled + land.astype(np.float32), grid, grid.transform @ Affine.scale(step))


def _lowest(read: Read, grid: Grid, step: int) -> NDArray[np.float32]:
    """The lowest height of each cell; infinite where it has none."""
    height, width = -(-grid.height // step), -(-grid.width // step)
    lowest = np.full((height, width), np.inf, np.float32)
    rows = max(1, STRIP_PX // (grid.width * step))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        values, valid = read(top * step, min(bottom * step, grid.height))
        strip = np.full(((bottom - top) * step, width * step), np.inf, np.float32)
        np.copyto(strip[: len(values), : grid.width], values, where=valid)
        lowest[top:bottom] = strip.reshape(bottom - top, step, width, step).min(axis=(1, 3))
    return lowest


def _file(heights: NDArray[np.float32], grid: Grid, transform: Affine) -> MemoryFile:
    memory = MemoryFile(ext=".tif")
    height, width = heights.shape
    with memory.open(
        driver="GTiff", width=width, height=height, count=1, dtype="float32", crs=grid.crs, transform=transform
    ) as file:
        file.write(heights, 1)
        file.units = ["m"]
    return memory


@contextmanager
def _silent() -> Iterator[None]:
    """The library talks on standard output, where others expect JSON."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
