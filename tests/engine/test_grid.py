"""Cases of the grid; what holds of every grid stands in test_properties.py."""

from __future__ import annotations

import pytest

from engine.contract.errors import UsageError
from engine.grid import Axis, TileGrid


def test_a_raster_of_one_tile_needs_one_tile_whatever_the_halo() -> None:
    assert len(TileGrid(height=64, width=64, tile_px=64, halo_px=24)) == 1


@pytest.mark.parametrize("halo_px", [-1, 32, 100])
def test_a_halo_without_a_core_is_refused(halo_px: int) -> None:
    with pytest.raises(UsageError, match=f"halo_px .* received {halo_px}"):
        Axis(length=100, tile_px=64, halo_px=halo_px)
