"""Cross-fading against a sum over all tiles, written down as slowly as possible."""

from __future__ import annotations

import numpy as np
import pytest

from engine.backends.base import Output
from engine.contract.bundle import NODATA_CLASS
from engine.contract.sensors import Provenance, Scenario
from engine.stitcher import HannStitcher

CLASSES, TILE_PX = 3, 32


def answers(rng: np.random.Generator) -> dict[Scenario, dict[Output, np.ndarray]]:
    """Each graph's answer for a tile: unrelated to any other tile's."""
    found = {}
    for scenario in Scenario:
        probabilities = rng.dirichlet(np.ones(CLASSES), (TILE_PX, TILE_PX)).transpose(2, 0, 1).astype(np.float32)
        found[scenario] = {
            Output.PROBABILITIES: probabilities,
            Output.CLASSES: probabilities.argmax(axis=0).astype(np.uint8),
            Output.CONFIDENCE: np.rint(probabilities.max(axis=0) * 255).astype(np.uint8),
        }
    return found


@pytest.mark.parametrize("size", [(32, 32), (20, 90), (33, 33), (100, 70), (77, 200)])
@pytest.mark.parametrize("halo_px", [0, 3, 8])
@pytest.mark.parametrize("narrow", [False, True])
def test_every_pixel_is_the_weighted_mean_of_the_tiles_that_cover_it(size, halo_px, narrow, monkeypatch) -> None:
    if narrow:
        monkeypatch.setattr("engine.stitcher.ACCUMULATOR_BYTES", 1)
    height, width = size
    rng = np.random.default_rng(halo_px)
    stitcher = HannStitcher(height=height, width=width, tile_px=TILE_PX, halo_px=halo_px, classes=CLASSES)
    grid = stitcher.grid
    seen = rng.choice([0, 1, 2, 3], (height, width), p=[0.1, 0.5, 0.2, 0.2]).astype(np.uint8)
    maps = np.full((3, height, width), 99, np.uint8)
    written = np.zeros((height, width), int)
    mean, given = np.zeros((CLASSES, height, width)), {}
    for tile in stitcher.tiles():
        row, col = next(
            strip.position(tile.index) for strip in reversed(grid.strips) if strip.first_index <= tile.index
        )
        outputs = given.setdefault((row, col), answers(rng))
        provenance = np.zeros((TILE_PX, TILE_PX), np.uint8)
        rows = np.arange(TILE_PX) + tile.reads.row
        cols = np.arange(TILE_PX) + tile.reads.col
        inside = np.ix_((rows >= 0) & (rows < height), (cols >= 0) & (cols < width))
        on_map = np.ix_(rows[(rows >= 0) & (rows < height)], cols[(cols >= 0) & (cols < width)])
        provenance[inside] = seen[on_map]
        for block in stitcher.add(tile, provenance, outputs):
            at = block.window.within(type(tile.reads)(row=0, col=0, height=height, width=width))
            maps[:, *at] = block.classes, block.confidence, block.provenance
            written[at] += 1
    for (row, col), outputs in given.items():
        (top, bottom), (left, right) = grid.rows.reach(row), grid.cols.reach(col)
        weights = grid.rows.weights(row)[:, None] * grid.cols.weights(col)
        inside = np.s_[
            top - grid.rows.start(row) : bottom - grid.rows.start(row),
            left - grid.cols.start(col) : right - grid.cols.start(col),
        ]
        for scenario, answer in outputs.items():
            mine = seen[top:bottom, left:right] == scenario.provenance
            mean[:, top:bottom, left:right] += np.where(mine, answer[Output.PROBABILITIES][:, *inside] * weights, 0)
    assert (written == 1).all()
    assert (maps[2] == seen).all()
    nothing = seen == Provenance.NONE
    assert (maps[0][nothing] == NODATA_CLASS).all()
    assert (maps[1][nothing] == 0).all()
    clear = ~nothing & (np.sort(mean, axis=0)[-1] - np.sort(mean, axis=0)[-2] > 1e-5)
    assert (maps[0][clear] == mean.argmax(axis=0)[clear]).all()
    assert np.abs(maps[1][~nothing] - mean.max(axis=0)[~nothing] * 255).max() <= 1.01  # rounded twice
