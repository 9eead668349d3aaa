"""Is this tile new, or the last one again with noise on it? Does it go on where the last one ended?

A signature of a tile answers both, by how alike two of them are at a displacement.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.health.lattice import SAMPLED_COLS, Lattice

if TYPE_CHECKING:
    from engine.rasters.sources import Observation

SIDE = 32
"""A signature holds 32 x 32 places."""
UNIT = {"u": 1.0, "f": 0.1}
"""Steps are counted in DN or decimetres."""
NOTHING = -128
"""Where there is no data."""
LEAST_PLACES = 128
LEAST_SHARED = 48
"""The same of two tiles that share a strip."""
LEAST_SPREAD = 2.0
"""A signature whose steps vary by less shows nothing that could be recognised."""
QUICK, UNLIKE = 4, 0.2
"""Two whole tiles that are less alike in every fourth place are not looked at any further."""


@dataclass(frozen=True)
class Signature:
    """Differences over 8 px at places of a tile, int8 [n]."""

    steps: NDArray[np.int8]

    @cached_property
    def whole(self) -> bool:
        """Every place has data."""
        return NOTHING & 0xFF not in self.steps.tobytes()

    @cached_property
    def text(self) -> str:
        """As a journal keeps it."""
        return base64.b64encode(self.steps.tobytes()).decode()

    @classmethod
    def of_text(cls, text: str) -> Signature:
        """From :attr:`text`."""
        return cls(np.frombuffer(base64.b64decode(text), np.int8))


def signature(seen: Observation, moved_px: tuple[int, int] = (0, 0), lattice: Lattice | None = None) -> Signature:
    """The signature of an RGIR or nDSM tile.

    Args:
        seen: the tile.
        lattice: of the tile, if it is there already: it has the places of a tile that was not moved.
        moved_px: how far it lies from the tile whose places it is to show: its own are used for 0 and for multiples of
            the distance between places.
    """
    kind, bands = seen.values.dtype.kind, len(seen.values)
    if lattice is not None and moved_px == (0, 0) and not seen.values.shape[2] % SAMPLED_COLS:
        every = slice(None, None, SAMPLED_COLS // SIDE)
        known = None if lattice.known is None else lattice.known[:, every]
        return Signature(_whole_steps(lattice.steps[:, every], bands * UNIT[kind], known).ravel())
    rows, cols = (max(1, size // SIDE) for size in seen.valid.shape)
    lag = max(1, cols // 2)
    top, first = (rows // 2 - moved_px[0]) % rows, -moved_px[1] % cols
    down, left, right = slice(top, None, rows), slice(first, -lag, cols), slice(first + lag, None, cols)
    before, after = seen.values[:, down, left], seen.values[:, down, right]
    count = min(before.shape[2], after.shape[2])
    before, after = before[:, :, :count].astype(np.float32), after[:, :, :count].astype(np.float32)
    known = seen.valid[down, left][:, :count] & seen.valid[down, right][:, :count]
    shown = _whole_steps((after - before).sum(axis=0), bands * UNIT[kind], known)
    if moved_px != (0, 0):  # the last place of a row may have no neighbour
        shown = np.pad(shown, ((0, 0), (0, max(0, SIDE - shown.shape[1]))), constant_values=NOTHING)
    return Signature(shown.ravel())


def _whole_steps(steps: NDArray[Any], unit: float, known: NDArray[np.bool_] | None) -> NDArray[np.int8]:
    """Steps in so many DN or metres, towards 0, within -127 to 127."""
    whole = np.empty(steps.shape, np.int8)
    np.clip(np.multiply(steps, np.float32(1 / unit), dtype=np.float32), -127, 127, out=whole, casting="unsafe")
    if known is not None:
        whole[~known] = NOTHING
    return whole


def at_places_of_another(own: Signature, seen: Observation, moved_px: tuple[int, int]) -> Signature:
    """The signature of a tile that lies so far from another, for :func:`likeness`; the usual tile has it already."""
    whole = all(step % max(1, size // SIDE) == 0 for step, size in zip(moved_px, seen.valid.shape, strict=True))
    return own if whole else signature(seen, moved_px)


def likeness(one: Signature, other: Signature, moved_px: tuple[int, int] = (0, 0), tile_px: int = 0) -> float | None:
    """Correlation of two signatures: 1 for the same place, about 0 for two places. None: nothing to recognise.

    Args:
        one, other: of an earlier tile and a later one, which was taken for this displacement.
        moved_px: how far down and to the right of the earlier tile the later one lies: where they overlap is compared.
        tile_px: side of both, where they are moved.
    """
    if one.steps.shape != other.steps.shape:
        return None
    first, second, whole = one.steps, other.steps, one.whole and other.whole
    if moved_px == (0, 0):
        quick = _correlation(first[::QUICK], second[::QUICK], LEAST_PLACES, whole) if whole else None
        if quick is not None and abs(quick) < UNLIKE:
            return quick
        return _correlation(first, second, LEAST_PLACES, whole)
    if len(first) != SIDE**2 or tile_px % SIDE:
        return None
    cell = tile_px // SIDE
    down, across = -((cell // 2 - moved_px[0]) // cell), -(-moved_px[1] // cell)  # the first place of a row is at 0
    first = first.reshape(SIDE, SIDE)[_shared(down), _shared(across)].ravel()
    second = second.reshape(SIDE, SIDE)[_shared(-down), _shared(-across)].ravel()
    return _correlation(first, second, LEAST_SHARED, whole)


def _correlation(one: NDArray[np.int8], other: NDArray[np.int8], least: int, whole: bool) -> float | None:
    if not whole:
        known = (one != NOTHING) & (other != NOTHING)
        one, other = one[known], other[known]
    count = len(one)
    if count < least:
        return None
    first, second = one.astype(np.float32), other.astype(np.float32)
    total, other_total = float(np.add.reduce(first)), float(np.add.reduce(second))
    power = float(first @ first) - total**2 / count
    other_power = float(second @ second) - other_total**2 / count
    if min(power, other_power) < LEAST_SPREAD**2 * count:
        return None
    return (float(first @ second) - total * other_total / count) / math.sqrt(power * other_power)


def _shared(places: int) -> slice:
    """What a tile shares, along one axis, with one that lies so many places further on."""
    return slice(max(places, 0), max(0, SIDE + min(places, 0)))
