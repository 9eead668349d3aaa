"""Tiles cover every pixel exactly once, keep their halo, and their blend weights sum to one."""

from __future__ import annotations

import numpy as np
import pytest

from engine.contract.errors import UsageError
from engine.grid import Axis, TileGrid

SIZES = [1, 63, 64, 65, 100, 112, 113, 300, 1000]


@pytest.mark.parametrize("length", SIZES)
@pytest.mark.parametrize("halo_px", [0, 8, 16])
def test_tiles_own_every_pixel_once_and_keep_their_halo(length: int, halo_px: int) -> None:
    axis = Axis(length=length, tile_px=64, halo_px=halo_px)
    owners = np.zeros(length, int)
    for i in range(axis.count):
        first, end, start = axis.boundary(i), axis.boundary(i + 1), axis.start(i)
        owners[first:end] += 1
        assert start <= first < end <= start + 64
        if length >= 64:
            assert 0 <= start <= length - 64, "padding was used although real pixels were there"
            assert i == 0 or first - start >= halo_px
            assert i == axis.count - 1 or start + 64 - end >= halo_px
    assert (owners == 1).all()


@pytest.mark.parametrize("length", SIZES)
@pytest.mark.parametrize("halo_px", [0, 8, 16])
def test_blend_weights_sum_to_one_within_what_each_tile_reads(length: int, halo_px: int) -> None:
    axis = Axis(length=length, tile_px=64, halo_px=halo_px)
    total = np.zeros(length)
    for i in range(axis.count):
        first, end = axis.reach(i)
        assert axis.start(i) <= first
        assert end <= axis.start(i) + 64
        total[first:end] += axis.weights(i)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_raster_of_one_tile_needs_one_tile_whatever_the_halo() -> None:
    assert len(TileGrid(height=64, width=64, tile_px=64, halo_px=24)) == 1


@pytest.mark.parametrize("strip_tiles", [None, 2, 100])
def test_targets_cover_the_raster_and_lie_inside_what_is_read(strip_tiles: int | None) -> None:
    grid = TileGrid(height=150, width=501, tile_px=64, halo_px=16, strip_tiles=strip_tiles)
    cover = np.zeros((150, 501), int)
    tiles = list(grid.tiles())
    assert [tile.index for tile in tiles] == list(range(len(grid)))
    for tile in tiles:
        rows, cols = tile.target.within(tile.reads)
        assert rows.start >= 0
        assert cols.start >= 0
        assert rows.stop <= 64
        assert cols.stop <= 64
        cover[tile.target.row :, tile.target.col :][: tile.target.height, : tile.target.width] += 1
    if strip_tiles is None:
        assert (cover == 1).all()
    else:
        assert (cover >= 1).all()


def test_tiles_can_start_anywhere() -> None:
    grid = TileGrid(height=150, width=501, tile_px=64, halo_px=16, strip_tiles=2)
    assert list(grid.tiles(17)) == list(grid.tiles())[17:]


@pytest.mark.parametrize("halo_px", [-1, 32, 100])
def test_a_halo_without_a_core_is_refused(halo_px: int) -> None:
    with pytest.raises(UsageError, match=f"--halo .* received {halo_px}"):
        Axis(length=100, tile_px=64, halo_px=halo_px)
