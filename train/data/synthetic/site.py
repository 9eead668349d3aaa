"""Drawing in street coordinates: what every kind of block needs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from train.data.synthetic.canvas import F32, Canvas, Mask, Material, Window
from train.data.synthetic.layout import Block, StreetFrame
from train.data.synthetic.materials import Palette
from train.data.synthetic.objects import Pose, car, gone_car, tree

Rng = np.random.Generator


class Site:
    """A canvas with its palette and street frame; u, v of every pixel are computed once."""

    def __init__(self, canvas: Canvas, palette: Palette, frame: StreetFrame) -> None:
        self.canvas = canvas
        self.palette = palette
        self.rng = palette.rng
        self.frame = frame
        self.u, self.v = frame.uv(canvas.x[None, :], canvas.y[:, None])
        self.tree_kinds = self.rng.dirichlet((4.0, 0.8, 0.5, 0.6))

    def window(self, block: Block, pad_m: float = 0.5) -> Window | None:
        """Pixels around a block, or None when it is out of sight."""
        du, dv = block.size
        # A bent side leaves the hull of its samples by little, and long sides get more of them.
        n = 2 + int(max(du, dv) / 15)
        points = [(block.u0 + k / (n - 1) * du, v) for k in range(n) for v in (block.v0, block.v1)]
        points += [(u, block.v0 + k / (n - 1) * dv) for k in range(n) for u in (block.u0, block.u1)]
        xs, ys = zip(*(self.frame.xy(u, v) for u, v in points), strict=True)
        bow = pad_m + 0.02 * min(max(du, dv), 15)
        return self.canvas.window(min(xs) - bow, min(ys) - bow, max(xs) + bow, max(ys) + bow)

    def inside(self, window: Window, block: Block, corner_m: float = 0.0) -> F32:
        """Signed distance in metres to a block with rounded corners, negative inside."""
        du, dv = block.size
        corner = min(corner_m, du / 2, dv / 2)
        a = np.abs(self.u[window] - (block.u0 + block.u1) / 2) - (du / 2 - corner)
        b = np.abs(self.v[window] - (block.v0 + block.v1) / 2) - (dv / 2 - corner)
        if corner == 0:
            return np.maximum(a, b)
        out = np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0)
        return (out - corner).astype(np.float32)

    def cover(
        self, block: Block, material: Material, label: int, *, corner_m: float = 0.0
    ) -> tuple[Window, Mask] | None:
        """Paint the ground of a block where nothing stands yet."""
        window = self.window(block)
        if window is None:
            return None
        mask = (self.inside(window, block, corner_m) < 0) & ~self.canvas.taken[window]
        self.canvas.paint(window, mask, material, label)
        return window, mask

    def pose(self, u: float, v: float, turn: float = 0.0) -> Pose:
        """World pose at u, v; `turn` radians from the +u direction."""
        x, y, angle = self.frame.pose(u, v)
        return x, y, angle + turn

    def car(self, u: float, v: float, turn: float) -> bool:
        """A car facing `turn`, or its opposite, slightly askew."""
        flip = np.pi * float(self.rng.integers(2))
        askew = float(self.rng.normal(0, 0.03))
        return car(self.canvas, self.palette, self.pose(u, v, turn + flip + askew))

    def empty_stall(self, u: float, v: float, turn: float) -> None:
        """A free place, where the height survey may have met a car all the same."""
        if self.rng.random() < 0.25 * self.canvas.survey.car_share:
            gone_car(self.canvas, self.pose(u, v, turn))

    def tree(self, u: float, v: float, radius: float | None = None, **options: object) -> None:
        """A tree of a kind that is common in this scene, or the given `kind`."""
        rng = self.rng
        if radius is None:
            radius = min(max(math.exp(rng.normal(0.85, 0.5)), 0.6), 8.0)
        kind = str(options.pop("kind", "")) or str(rng.choice(("broad", "conifer", "palm", "bare"), p=self.tree_kinds))
        if kind == "palm":
            radius = min(max(radius, 1.5), 3.2)
            options.setdefault("height_m", float(rng.uniform(4, 12)))
        x, y = self.frame.xy(u, v)
        tree(self.canvas, self.palette, x, y, radius, kind=kind, **options)  # type: ignore[arg-type]

    def scatter(self, block: Block, per_100_m2: float, limit: int = 60) -> list[tuple[float, float]]:
        """Poisson-many random places in a block."""
        du, dv = block.size
        if du <= 0 or dv <= 0:
            return []
        count = min(int(self.rng.poisson(du * dv * per_100_m2 / 100)), limit)
        u = self.rng.uniform(block.u0, block.u1, count)
        v = self.rng.uniform(block.v0, block.v1, count)
        return [(float(a), float(b)) for a, b in zip(u, v, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Lot:
    """A parcel with a front: a runs along the front from 0 to `width`, d away from it."""

    block: Block
    front: str  # the side of the block that faces the street: "u0", "u1", "v0" or "v1"

    @property
    def along_u(self) -> bool:
        """Whether the front runs along u."""
        return self.front[0] == "v"

    @property
    def width(self) -> float:
        """Length of the front, metres."""
        return self.block.size[0 if self.along_u else 1]

    @property
    def depth(self) -> float:
        """Extent away from the front, metres."""
        return self.block.size[1 if self.along_u else 0]

    @property
    def turn(self) -> float:
        """Angle of the front's direction against +u."""
        return 0.0 if self.along_u else float(np.pi / 2)

    def at(self, a: float, d: float) -> tuple[float, float]:
        """Street coordinates of a point of the lot."""
        b = self.block
        if self.along_u:
            return b.u0 + a, (b.v0 + d if self.front == "v0" else b.v1 - d)
        return (b.u0 + d if self.front == "u0" else b.u1 - d), b.v0 + a

    def rect(self, a0: float, a1: float, d0: float, d1: float) -> Block:
        """A rectangle of the lot as a block."""
        (ua, va), (ub, vb) = self.at(a0, d0), self.at(a1, d1)
        return Block(u0=min(ua, ub), u1=max(ua, ub), v0=min(va, vb), v1=max(va, vb))


def lots(rng: Rng, block: Block, width_m: tuple[float, float], min_depth_m: float) -> list[Lot]:
    """Cut a block into lots along its long side, in two rows back to back when deep enough."""
    du, dv = block.size
    along_u = du >= dv
    depth = dv if along_u else du
    length = du if along_u else dv
    first, second = ("v0", "v1") if along_u else ("u0", "u1")
    if depth > 2 * min_depth_m:
        cut = depth * float(rng.uniform(0.45, 0.55))
        rows = [(0.0, cut, first), (cut, depth, second)]
    else:
        rows = [(0.0, depth, str(rng.choice((first, second))))]
    out = []
    for d0, d1, front in rows:
        count = max(int(length / rng.uniform(*width_m)), 1)
        edges = np.linspace(0, length, count + 1)
        edges[1:-1] += rng.uniform(-0.15, 0.15, count - 1) * length / count
        for a0, a1 in itertools.pairwise(edges):
            part = (
                Block(u0=block.u0 + a0, u1=block.u0 + a1, v0=block.v0 + d0, v1=block.v0 + d1)
                if along_u
                else Block(u0=block.u0 + d0, u1=block.u0 + d1, v0=block.v0 + a0, v1=block.v0 + a1)
            )
            out.append(Lot(block=part, front=front))
    return out
