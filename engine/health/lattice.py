"""Every fourth pixel of 32 rows of a tile: what several statistics look at, gathered once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.rasters.sources import Observation

SAMPLED_ROWS = 32
SAMPLED_COLS = 128
LAG = 2
"""Steps are taken over so many columns: 8 px of a tile of 512."""


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Values of one sensor's tile at places in a lattice."""

    values: NDArray[Any]
    """Heights, float32 [rows, cols], metres; or the sum of an image's bands, int16 [rows, cols], DN."""
    valid: NDArray[np.bool_] | None
    """Where there is data, bool [rows, cols]; None is everywhere."""
    side_px: int
    """The shorter side of the tile."""

    @cached_property
    def steps(self) -> NDArray[Any]:
        """How much the values change over 8 px, [rows, cols - 2]."""
        difference: NDArray[Any] = self.values[:, LAG:] - self.values[:, :-LAG]
        return difference

    @cached_property
    def known(self) -> NDArray[np.bool_] | None:
        """Where both ends of a step have data; None is everywhere."""
        return None if self.valid is None else self.valid[:, LAG:] & self.valid[:, :-LAG]

    @property
    def known_values(self) -> NDArray[Any]:
        """The values with data, [n]."""
        return self.values.ravel() if self.valid is None else self.values[self.valid]


def lattice_of(seen: Observation, *, whole: bool = False) -> Lattice:
    """The lattice of an RGIR or nDSM tile; ``whole``: all its pixels have data."""
    height, width = seen.valid.shape
    rows, cols = max(1, height // SAMPLED_ROWS), max(1, width // SAMPLED_COLS)
    places = (slice(rows // 2, None, rows), slice(None, None, cols))
    if seen.values.dtype.kind == "f":
        values = np.ascontiguousarray(seen.values[0][places])
    else:
        values = seen.values[:, *places].sum(axis=0, dtype=np.int16)
    return Lattice(values=values, valid=None if whole else seen.valid[places], side_px=min(height, width))
