"""Where streets run: a bent street frame and its recursive division into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from train.data.synthetic.canvas import F32

Rng = np.random.Generator


class StreetFrame:
    """Rotated and gently bent coordinates u, v (metres) in which streets are straight lines."""

    def __init__(self, rng: Rng, centre: tuple[float, float], *, bend_m: float) -> None:
        self.centre = centre
        self.angle = float(rng.uniform(0, 2 * np.pi))
        amplitude = rng.uniform(0, bend_m, 2)
        # Wavelength grows with the bend: the slope stays under 0.35, so that houses and cars,
        # which are drawn rigid, still follow their street.
        wave = np.maximum(rng.uniform(18, 50, 2), amplitude / 0.35)
        phase = rng.uniform(0, 2 * np.pi, 2)
        self._u_bend = (float(amplitude[0]), float(wave[0]), float(phase[0]))
        self._v_bend = (float(amplitude[1]), float(wave[1]), float(phase[1]))
        self._cos, self._sin = math.cos(self.angle), math.sin(self.angle)

    def uv(self, x: F32, y: F32) -> tuple[F32, F32]:
        """World to street coordinates, for arrays."""
        dx, dy = x - self.centre[0], y - self.centre[1]
        p, q = dx * self._cos + dy * self._sin, dy * self._cos - dx * self._sin
        (au, wu, fu), (av, wv, fv) = self._u_bend, self._v_bend
        u, v = p + au * np.sin(q / wu + fu), q + av * np.sin(p / wv + fv)
        return u.astype(np.float32), v.astype(np.float32)

    def xy(self, u: float, v: float) -> tuple[float, float]:
        """Street to world coordinates (fixed-point inverse of `uv`; a contraction, see above)."""
        (au, wu, fu), (av, wv, fv) = self._u_bend, self._v_bend
        p, q = float(u), float(v)
        for _ in range(8):
            p, q = u - au * math.sin(q / wu + fu), v - av * math.sin(p / wv + fv)
        cos, sin = self._cos, self._sin
        return self.centre[0] + p * cos - q * sin, self.centre[1] + p * sin + q * cos

    def pose(self, u: float, v: float) -> tuple[float, float, float]:
        """World position and the world angle of the +u direction there."""
        x0, y0 = self.xy(u - 0.5, v)
        x1, y1 = self.xy(u + 0.5, v)
        return (x0 + x1) / 2, (y0 + y1) / 2, math.atan2(y1 - y0, x1 - x0)


@dataclass(frozen=True, kw_only=True)
class Street:
    """A street along u (`along_u`) at v = `at`, or along v at u = `at`, between `lo` and `hi`."""

    along_u: bool
    at: float
    lo: float
    hi: float
    width_m: float


@dataclass(frozen=True, kw_only=True)
class Block:
    """The land between streets, kerb to kerb, in street coordinates."""

    u0: float
    u1: float
    v0: float
    v1: float

    @property
    def size(self) -> tuple[float, float]:
        """Extent along u and v in metres."""
        return self.u1 - self.u0, self.v1 - self.v0

    def inset(self, by_m: float) -> Block:
        """The block without a border of the given width."""
        return Block(u0=self.u0 + by_m, u1=self.u1 - by_m, v0=self.v0 + by_m, v1=self.v1 - by_m)


def divide(
    rng: Rng,
    area: Block,
    *,
    block_m: tuple[float, float],
    width_m: tuple[float, float],
) -> tuple[list[Street], list[Block]]:
    """Split an area until every block's sides are below a size drawn from `block_m`.

    Streets (widths from `width_m`, the earlier the wider) end at earlier ones: T-junctions.
    """
    streets: list[Street] = []
    blocks: list[Block] = []
    pending = [(area, 0)]
    while pending:
        part, depth = pending.pop()
        du, dv = part.size
        limit = rng.uniform(*block_m)
        if max(du, dv) < limit * rng.uniform(1.0, 1.6):
            blocks.append(part)
            continue
        cut_u = du > dv
        lo, hi = (part.u0, part.u1) if cut_u else (part.v0, part.v1)
        at = float(rng.uniform(lo + 0.32 * (hi - lo), hi - 0.32 * (hi - lo)))
        share = float(np.clip(1 - depth * 0.25 + rng.normal(0, 0.2), 0, 1))
        width = width_m[0] + (width_m[1] - width_m[0]) * share
        half = width / 2
        if cut_u:
            street = Street(along_u=False, at=at, lo=part.v0, hi=part.v1, width_m=width)
            halves = (
                Block(u0=part.u0, u1=at - half, v0=part.v0, v1=part.v1),
                Block(u0=at + half, u1=part.u1, v0=part.v0, v1=part.v1),
            )
        else:
            street = Street(along_u=True, at=at, lo=part.u0, hi=part.u1, width_m=width)
            halves = (
                Block(u0=part.u0, u1=part.u1, v0=part.v0, v1=at - half),
                Block(u0=part.u0, u1=part.u1, v0=at + half, v1=part.v1),
            )
        streets.append(street)
        pending += [(h, depth + 1) for h in halves]
    return streets, blocks
