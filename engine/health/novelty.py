"""Is this tile new, or the last one again with noise on it? Does it go on where the last one ended?

A signature of a tile answers both, by how alike two of them are at a displacement.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.rasters.sources import Observation

SIDE = 32
"""A signature holds 32 x 32 places."""
LAG = 8
UNIT = {"u": 1.0, "f": 0.1}
"""Steps are counted in DN or decimetres."""
NOTHING = -128
"""Where there is no data."""
LEAST_PLACES = 128
LEAST_SHARED = 48
"""The same of two tiles that share a strip."""
LEAST_SPREAD = 2.0
"""A signature whose steps vary by less shows nothing that could be recognised."""


@dataclass(frozen=True)
class Signature:
    """Differences over 8 px at places of a tile, int8 [n]."""

    steps: NDArray[np.int8]

    @property
    def text(self) -> str:
        """As a journal keeps it."""
        return base64.b64encode(self.steps.tobytes()).decode()

    @classmethod
    def of_text(cls, text: str) -> Signature:
        """From :attr:`text`."""
        return cls(np.frombuffer(base64.b64decode(text), np.int8))


def signature(seen: Observation, moved_px: tuple[int, int] = (0, 0)) -> Signature:
    """The signature of an RGIR or nDSM tile.

    Args:
        seen: the tile.
        moved_px: how far it lies from the tile whose places it is to show: its own are used for 0 and for multiples of
            the distance between places.
    """
    kind = seen.values.dtype.kind
    rows, cols = (max(1, size // SIDE) for size in seen.valid.shape)
    lag = min(LAG, max(1, cols // 2))
    top, first = (rows // 2 - moved_px[0]) % rows, -moved_px[1] % cols
    down, left, right = slice(top, None, rows), slice(first, -lag, cols), slice(first + lag, None, cols)
    before, after = seen.values[:, down, left], seen.values[:, down, right]
    count = min(before.shape[2], after.shape[2])
    before, after = before[:, :, :count].astype(np.float32), after[:, :, :count].astype(np.float32)
    steps = np.clip((after - before).mean(axis=0) / UNIT[kind], -127, 127)
    known = seen.valid[down, left][:, :count] & seen.valid[down, right][:, :count]
    shown = np.where(known, np.rint(steps), NOTHING).astype(np.int8)
    if moved_px != (0, 0):  # the last place of a row may have no neighbour
        shown = np.pad(shown, ((0, 0), (0, max(0, SIDE - shown.shape[1]))), constant_values=NOTHING)
    return Signature(shown.ravel())


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
    first, second, least = one.steps, other.steps, LEAST_PLACES
    if moved_px != (0, 0):
        if len(first) != SIDE**2 or tile_px % SIDE:
            return None
        cell = tile_px // SIDE
        down, across = -((cell // 2 - moved_px[0]) // cell), -(-moved_px[1] // cell)  # the first place of a row is at 0
        first = first.reshape(SIDE, SIDE)[_shared(down), _shared(across)]
        second = second.reshape(SIDE, SIDE)[_shared(-down), _shared(-across)]
        least = LEAST_SHARED
    known = (first != NOTHING) & (second != NOTHING)
    count = np.count_nonzero(known)
    if count < least:
        return None
    places = slice(None) if count == known.size else known  # the usual tile, without a copy
    one_steps, other_steps = (each[places].astype(np.float32).ravel() for each in (first, second))
    total, other_total = float(one_steps.sum()), float(other_steps.sum())
    power = float(one_steps @ one_steps) - total**2 / count
    other_power = float(other_steps @ other_steps) - other_total**2 / count
    if min(power, other_power) < LEAST_SPREAD**2 * count:
        return None
    return (float(one_steps @ other_steps) - total * other_total / count) / math.sqrt(power * other_power)


def _shared(places: int) -> slice:
    """What a tile shares, along one axis, with one that lies so many places further on."""
    return slice(max(places, 0), max(0, SIDE + min(places, 0)))
