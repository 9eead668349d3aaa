"""Buildings: footprints of one to four wings under flat, shed, gable or hipped roofs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.synthetic.canvas import BUILDING, F32, Canvas, Mask, Patch
from train.data.synthetic.materials import Palette, blend, vary

Rng = np.random.Generator

STOREY_M = 2.9


@dataclass(frozen=True, kw_only=True)
class Wing:
    """One rectangle of a footprint: centre and half sizes in the building's s, t metres."""

    s: float
    t: float
    half_s: float
    half_t: float


def footprint(rng: Rng, length: float, width: float, shape: str) -> list[Wing]:
    """Wings of a `rect`, `L`, `T`, `U` or `court` (closed courtyard) footprint."""
    hs, ht = length / 2, width / 2
    if shape == "rect" or min(length, width) < 7:
        return [Wing(s=0, t=0, half_s=hs, half_t=ht)]
    depth = float(rng.uniform(0.38, 0.55)) * min(length, width)
    if shape in ("U", "court"):
        depth = min(depth * 0.7, 13.0)
    base = Wing(s=0, t=-ht + depth / 2, half_s=hs, half_t=depth / 2)
    if shape == "L":
        side = float(rng.choice((-1.0, 1.0))) * (hs - depth / 2)
        return [base, Wing(s=side, t=0, half_s=depth / 2, half_t=ht)]
    if shape == "T":
        return [base, Wing(s=float(rng.uniform(-0.4, 0.4)) * hs, t=0, half_s=depth / 2, half_t=ht)]
    arms = [Wing(s=k * (hs - depth / 2), t=0, half_s=depth / 2, half_t=ht) for k in (-1, 1)]
    if shape == "court":
        arms.append(Wing(s=0, t=ht - depth / 2, half_s=hs, half_t=depth / 2))
    return [base, *arms]


def _roof_height(patch: Patch, wing: Wing, kind: str, rise: float, along_s: bool) -> F32:
    """Height above the eaves, defined (by continuation) outside the wing too."""
    a, b = patch.s - wing.s, patch.t - wing.t
    ha, hb = wing.half_s, wing.half_t
    if not along_s:
        a, b, ha, hb = b, a, hb, ha
    if kind == "shed":
        return (b + hb) * (rise * 0.4)
    if kind == "gable":
        return (hb - np.abs(b)) * rise
    if kind == "hip":
        return np.minimum(hb - np.abs(b), (ha - np.abs(a)) * 1.0) * rise
    if kind == "vault":
        return (np.sqrt(np.maximum(hb * hb - b * b, 0.01)) * (rise * 0.5)).astype(np.float32, copy=False)
    return np.zeros_like(a)


def building(
    canvas: Canvas,
    palette: Palette,
    pose: tuple[float, float, float],
    length: float,
    width: float,
    *,
    eave_m: float,
    flat: bool,
    shape: str = "rect",
    packed: bool = False,
    roof: str | None = None,
    in_row: bool = False,
) -> bool:
    """Draw one building; False when it would stand on something else or outside the canvas.

    `pose` is x, y (metres) and angle (radians) of the +length axis. `packed` buildings may touch
    their neighbours and only lose the pixels that are taken. `roof` names the roof's shape, drawn
    at random when None. The ridge follows the longer side, or the length when `in_row`.
    """
    rng = palette.rng
    if packed:
        length += 0.4  # rigid houses along a bent street would leave slits
    patch = canvas.patch(*pose, length / 2 + 0.5, width / 2 + 0.5)
    if patch is None:
        return False
    wings = footprint(rng, length, width, shape)
    inside = [(np.abs(patch.s - w.s) <= w.half_s) & (np.abs(patch.t - w.t) <= w.half_t) for w in wings]
    mask: Mask = np.logical_or.reduce(inside)
    taken = canvas.taken[patch.window]
    if packed:
        mask = mask & ~taken
    elif (mask & taken).any():
        return False
    if not mask.any():
        return False
    if roof is None:
        roof = "flat" if flat else str(rng.choice(("gable", "hip", "shed"), p=(0.6, 0.28, 0.12)))
    rise = float(np.tan(np.radians(rng.uniform(14, 50) if width < 16 else rng.uniform(6, 22))))
    kind, material = palette.roof(flat=roof == "flat")
    above = np.zeros_like(patch.s)
    for wing, own in zip(wings, inside, strict=True):
        along_s = in_row or ((wing.half_s >= wing.half_t) != (rng.random() < 0.08))
        part = _roof_height(patch, wing, roof, rise, along_s)
        # Where wings meet the higher roof shows; elsewhere each continues past its own walls.
        above = np.where(own, np.maximum(part, above), above) if len(wings) > 1 else part
    height = (eave_m + np.maximum(above, -0.5)).astype(np.float32)
    canvas.paint(patch.window, mask, material, BUILDING)
    _texture(canvas, patch, mask, rng, roof, kind)
    canvas.taken[patch.window] |= mask
    canvas.raise_surface(patch.window, mask, height, sensed_m=height)
    if roof == "flat":
        _flat_roof_things(canvas, palette, patch, mask, eave_m, wings, kind)
    else:
        _pitched_roof_things(canvas, palette, patch, mask, height, wings[0])
    return True


def _texture(canvas: Canvas, patch: Patch, mask: Mask, rng: Rng, roof: str, kind: str) -> None:
    """Rows of tiles, seams of sheets, darker or paler zones."""
    if roof != "flat" and kind != "green":
        period = float(rng.uniform(0.3, 1.2))
        if period > 2.2 * canvas.gsd_m:
            axis = patch.t if rng.random() < 0.7 else patch.s
            wave = np.sin(axis * (2 * np.pi / period)) * rng.uniform(0.01, 0.07)
            canvas.tint(patch.window, mask, (1 + wave).astype(np.float32))
    if rng.random() < 0.35:  # a part re-roofed, soiled or of another age
        s0, s1 = np.sort(rng.uniform(patch.s.min(), patch.s.max(), 2))
        t0, t1 = np.sort(rng.uniform(patch.t.min(), patch.t.max(), 2))
        zone = mask & (patch.s > s0) & (patch.s < s1) & (patch.t > t0) & (patch.t < t1)
        canvas.tint(patch.window, zone, float(rng.uniform(0.75, 1.25)))


def _box(canvas: Canvas, patch: Patch, mask: Mask, s: float, t: float, half_s: float, half_t: float) -> Mask:
    return mask & (np.abs(patch.s - s) < half_s) & (np.abs(patch.t - t) < half_t)


def _flat_roof_things(
    canvas: Canvas,
    palette: Palette,
    patch: Patch,
    mask: Mask,
    eave: float,
    wings: list[Wing],
    kind: str,
) -> None:
    """Parapet, plant rooms, air conditioners, skylights, panels, puddles."""
    rng, window = palette.rng, patch.window
    if rng.random() < 0.6:
        width = float(rng.uniform(0.25, 0.6))
        inner = np.zeros_like(mask)
        for w in wings:
            inner |= _box(canvas, patch, mask, w.s, w.t, w.half_s - width, w.half_t - width)
        rim = mask & ~inner
        canvas.paint(window, rim, palette.wall())
        raised = eave + float(rng.uniform(0.1, 0.9))
        canvas.raise_surface(window, rim, raised, sensed_m=raised)
    area = sum(4 * w.half_s * w.half_t for w in wings)
    for _ in range(int(rng.poisson(min(area / 70, 8.0)))):
        w = wings[int(rng.integers(len(wings)))]
        hs, ht = rng.uniform(0.3, 1.4, 2) if rng.random() < 0.8 else rng.uniform(1.2, 3.5, 2)
        s = w.s + rng.uniform(-1, 1) * max(w.half_s - hs, 0)
        t = w.t + rng.uniform(-1, 1) * max(w.half_t - ht, 0)
        own = _box(canvas, patch, mask, s, t, hs, ht)
        top = eave + float(rng.uniform(0.3, 2.6))
        canvas.paint(window, own, palette.thing() if rng.random() < 0.15 else palette.wall())
        canvas.raise_surface(window, own, top, sensed_m=top)
    w = wings[0]
    if area > 150 and rng.random() < 0.45:  # skylights or panels in a regular grid
        step_s, step_t = rng.uniform(3, 9, 2)
        size_s, size_t = rng.uniform(0.8, 0.8 * step_s), rng.uniform(0.5, 0.5 * step_t)
        grid = (
            mask
            & (np.mod(patch.s, step_s) < size_s)
            & (np.mod(patch.t, step_t) < size_t)
            & (np.abs(patch.s - w.s) < w.half_s * 0.85)
            & (np.abs(patch.t - w.t) < w.half_t * 0.8)
        )
        dark = rng.random() < 0.5
        canvas.paint(window, grid, vary(rng, (0.16, 0.18, 0.26) if dark else (0.8, 0.88, 0.9), 0.15))


def _pitched_roof_things(canvas: Canvas, palette: Palette, patch: Patch, mask: Mask, height: F32, wing: Wing) -> None:
    """Chimneys, dormers, roof windows, solar panels, pale ridge tiles."""
    rng, window = palette.rng, patch.window
    if rng.random() < 0.4 and canvas.gsd_m < 0.3:
        ridge = mask & (np.abs(patch.t - wing.t) < 0.18)
        canvas.tint(window, ridge, float(rng.uniform(0.85, 1.3)))
    for _ in range(int(rng.integers(0, 4))):  # chimneys
        s, t = wing.s + rng.uniform(-0.9, 0.9) * wing.half_s, wing.t + rng.uniform(-0.5, 0.5)
        own = _box(canvas, patch, mask, s, t, float(rng.uniform(0.25, 0.6)), 0.35)
        top = float(height[own].max()) + 0.9 if own.any() else 0.0
        canvas.paint(window, own, vary(rng, (0.45, 0.46, 0.40), 0.3))
        canvas.raise_surface(window, own, top, sensed_m=top if rng.random() < 0.6 else None)
    if rng.random() < 0.3 and wing.half_t > 3.5:  # dormers in a row on one side
        side, count = float(rng.choice((-1.0, 1.0))), int(rng.integers(1, 5))
        for k in range(count):
            s = wing.s + ((k + 0.5) / count * 2 - 1) * wing.half_s * 0.8
            own = _box(canvas, patch, mask, s, wing.t + side * wing.half_t * 0.55, 0.9, 1.2)
            if own.any():
                top = float(height[own].max())
                canvas.raise_surface(window, own, top, sensed_m=top)
                if rng.random() < 0.5:
                    canvas.tint(window, own, float(rng.uniform(0.6, 1.2)))
    for _ in range(int(rng.integers(0, 5))):  # roof windows
        s = wing.s + rng.uniform(-0.9, 0.9) * wing.half_s
        t = wing.t + rng.uniform(-0.8, 0.8) * wing.half_t
        own = _box(canvas, patch, mask, s, t, 0.4, 0.6)
        canvas.paint(window, own, vary(rng, (0.18, 0.22, 0.25) if rng.random() < 0.7 else (0.85, 0.9, 0.95)))
    if rng.random() < 0.15:  # solar panels
        side = float(rng.choice((-1.0, 1.0)))
        own = _box(
            canvas, patch, mask, wing.s + rng.uniform(-0.3, 0.3) * wing.half_s,
            wing.t + side * wing.half_t * 0.5,
            wing.half_s * float(rng.uniform(0.2, 0.7)), wing.half_t * float(rng.uniform(0.2, 0.4)),
        )  # fmt: skip
        canvas.paint(window, own, vary(rng, blend((0.14, 0.16, 0.24), (0.3, 0.3, 0.4), 0.2), 0.2))
