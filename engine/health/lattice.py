"""Every fourth pixel of 32 rows of a tile: what several statistics look at, gathered once.

In a flight every call of numpy on more than some 500 values hands Python over to another thread and costs more than the
arithmetic: fewer calls count for more than fewer pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.rasters.sources import Observation

SAMPLED_ROWS = 32
SAMPLED_COLS = 128
CRC_BYTES = 5 << 10
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
    def rises(self) -> NDArray[Any]:
        """The same without its sign."""
        absolute: NDArray[Any] = np.abs(self.steps)
        return absolute

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest value; places without data hold a neighbour's."""
        return float(self.values.min()), float(self.values.max())

    @cached_property
    def known(self) -> NDArray[np.bool_] | None:
        """Where both ends of a step have data; None is everywhere."""
        return None if self.valid is None else self.valid[:, LAG:] & self.valid[:, :-LAG]

    @property
    def checksum(self) -> int:
        """CRC-32 of the values."""
        data, found = self.values.data.cast("B"), 0
        for first in range(0, len(data), CRC_BYTES):  # of more at once zlib hands over to another thread
            found = zlib.crc32(data[first : first + CRC_BYTES], found)
        return found

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
        values = np.ascontiguousarray(seen.values[:, *places].sum(axis=0, dtype=np.int16))
    return Lattice(values=values, valid=None if whole else seen.valid[places], side_px=min(height, width))
