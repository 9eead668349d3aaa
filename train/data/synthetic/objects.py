"""Trees, hedges, cars and the small things that ISPRS calls clutter."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from train.data.synthetic.canvas import (
    CAR,
    CLUTTER,
    LOW_VEGETATION,
    TREE,
    Canvas,
    Material,
    Window,
)
from train.data.synthetic.materials import Palette, vary

Rng = np.random.Generator
Pose = tuple[float, float, float]


def tree(
    canvas: Canvas,
    palette: Palette,
    x: float,
    y: float,
    radius: float,
    *,
    kind: str = "broad",
    height_m: float | None = None,
    over_roofs: bool = False,
    material: Material | None = None,
) -> None:
    """One crown: `broad`, `conifer`, `palm`, `bare` (see-through) or `bush` (low vegetation)."""
    rng = palette.rng
    patch = canvas.patch(x, y, 0.0, radius * 1.35, radius * 1.35)
    if patch is None:
        return
    window = patch.window
    if height_m is None:
        slender = {"conifer": 3.2, "palm": 2.6, "bush": 0.8}.get(kind, 1.7)
        height_m = min(max(radius * slender * math.exp(rng.normal(0, 0.25)) + 0.6, 0.4), 32.0)
    if kind == "bush":
        height_m = min(height_m, 1.3)
    theta = np.arctan2(patch.t, patch.s)
    dist = np.hypot(patch.s, patch.t) / radius
    lobes, phase = int(rng.integers(3, 8)), float(rng.uniform(0, 6.28))
    if kind == "palm":
        fronds = int(rng.integers(9, 17))
        outline = 0.35 + 0.75 * np.abs(np.sin(theta * fronds / 2 + phase)) ** 0.8
        outline = outline * (1 + 0.15 * np.sin(lobes * theta))
        dist = dist / np.maximum(outline, 0.3) + 0.08 * canvas.grain(window, 0.3)
    else:
        dist = dist * (1 + 0.07 * np.sin(lobes * theta + phase))
        dist = dist + 0.05 * canvas.grain(window, 0.3) + 0.09 * canvas.grain(window, 0.9)
    crown = dist < 1
    power = {"conifer": 1.0, "palm": 1.6}.get(kind, float(rng.uniform(1.8, 3.0)))
    depth = {"conifer": 0.85, "palm": 0.25, "bush": 0.6}.get(kind, float(rng.uniform(0.3, 0.7)))
    rough = 0.07 * height_m * float(rng.uniform(0.4, 1.4))
    height = height_m * (1 - depth * np.clip(dist, 0, 1.3) ** power)
    height = height + rough * (0.6 * canvas.grain(window, 0.9) + 0.5 * canvas.grain(window, 0.3))
    height = np.maximum(height, 0.15).astype(np.float32)
    floor = canvas.surface[window]
    crown &= (height > floor + 0.1) & (over_roofs | (floor < 2.2) | (height_m > 1.15 * floor))
    if not crown.any():
        return
    visible = crown
    if kind == "bare":
        visible = crown & (canvas.grain(window, 0.3) + 0.4 * canvas.grain(window, 0.1) > -0.2)
    if material is None:
        material = palette.crown(conifer=kind == "conifer")
    # Gaps between leaf clumps are dark; the rim of the crown sees less sky.
    clumps = 1 + 0.16 * canvas.grain(window, 0.3) + 0.10 * canvas.grain(window, 0.9)
    factor = np.clip(clumps, 0.4, 1.5) * np.clip(1.12 - 0.25 * dist**2, 0.6, 1.15)
    canvas.paint(window, visible, material, factor=factor.astype(np.float32))
    np.copyto(canvas.label[window], np.uint8(LOW_VEGETATION if kind == "bush" else TREE), where=crown)
    survey = canvas.survey
    share = survey.tree_share * (0.5 if kind == "bare" else 1.0)
    sensed = height * float(rng.uniform(0.85, 1.05)) if rng.random() < share else None
    if sensed is not None and survey.tree_penetration > 0:
        # Pulses that pass the crown return from branches or the ground.
        deep = rng.random(sensed.shape, dtype=np.float32) < survey.tree_penetration
        sensed = np.where(deep, sensed * rng.random(sensed.shape, dtype=np.float32), sensed)
    canvas.raise_surface(window, crown, height, sensed_m=None)
    if sensed is not None:
        # Few points per square metre draw a crown too wide, most of all the gaps between the fronds of a palm.
        reach_px = round(survey.tree_swell_m / canvas.gsd_m)
        wide = ndimage.binary_dilation(crown, iterations=reach_px) if reach_px else crown
        canvas.sense(window, wide, sensed)


def forest(canvas: Canvas, palette: Palette, window: Window, mask: np.ndarray, spacing_m: float) -> None:
    """Closed canopy over a mask: one dome per seed, crowns meeting where domes cross."""
    rng = palette.rng
    rows, cols = mask.shape
    step = max(spacing_m / canvas.gsd_m, 2.0)
    ny, nx = max(int(rows / step), 1), max(int(cols / step), 1)
    jitter = rng.uniform(0.05, 0.95, (2, ny, nx))
    sy = ((np.arange(ny)[:, None] + jitter[0]) * rows / ny).astype(np.intp).ravel()
    sx = ((np.arange(nx)[None, :] + jitter[1]) * cols / nx).astype(np.intp).ravel()
    seeds = np.ones(mask.shape, np.bool_)
    seeds[sy, sx] = False
    dist, (iy, ix) = ndimage.distance_transform_edt(seeds, return_indices=True)
    owner = np.full(mask.shape, 0, np.intp)
    owner[sy, sx] = np.arange(len(sy))
    own = owner[iy, ix]
    reach = dist.astype(np.float32) * canvas.gsd_m / spacing_m
    reach = reach + 0.06 * canvas.grain(window, 0.9)
    stand = float(rng.uniform(4, 22))
    tops = (stand * np.exp(rng.normal(0, 0.18, len(sy)))).astype(np.float32)[own]
    height = tops * (1 - float(rng.uniform(0.25, 0.6)) * np.minimum(reach, 1.2) ** 2)
    height = height + 0.035 * stand * (canvas.grain(window, 0.9) + canvas.grain(window, 0.3))
    height = np.maximum(height, 0.3).astype(np.float32)
    closed = float(rng.uniform(0.55, 1.1))
    crown = mask & (reach < closed) & (canvas.surface[window] < 2)
    kinds = [palette.crown(conifer=rng.random() < 0.3) for _ in range(4)]
    kind = rng.integers(0, 4, len(sy))[own]
    tone = np.exp(rng.normal(0, 0.12, len(sy))).astype(np.float32)[own]
    clumps = np.clip(1 + 0.15 * canvas.grain(window, 0.3) + 0.1 * canvas.grain(window, 0.9), 0.4, 1.5)
    rim = np.clip(1.1 - 0.45 * reach**2, 0.5, 1.1)
    for k, material in enumerate(kinds):
        canvas.paint(window, crown & (kind == k), material, TREE, factor=tone * clumps * rim)
    sensed = None
    if rng.random() < canvas.survey.tree_share + 0.2:
        deep = rng.random(height.shape, dtype=np.float32) < canvas.survey.tree_penetration
        sensed = np.where(deep, height * rng.random(height.shape, dtype=np.float32), height)
    canvas.raise_surface(window, crown, height, sensed_m=sensed)


def hedge(canvas: Canvas, palette: Palette, pose: Pose, length: float, material: Material) -> None:
    """A clipped or loose row of shrubs; from 1.5 m up it counts as tree, as ISPRS maps it."""
    rng = palette.rng
    width, top = float(rng.uniform(0.5, 1.8)), float(rng.uniform(0.7, 2.8))
    patch = canvas.patch(*pose, length / 2, width)
    if patch is None:
        return
    window = patch.window
    edge = width / 2 * (1 + 0.25 * canvas.grain(window, 0.9))
    mask = (np.abs(patch.s) < length / 2) & (np.abs(patch.t) < edge)
    mask &= canvas.surface[window] < top
    height = top * (1 - 0.3 * (patch.t / width * 2) ** 2) + 0.12 * canvas.grain(window, 0.3)
    height = np.maximum(height, 0.3).astype(np.float32)
    factor = np.clip(1 + 0.15 * canvas.grain(window, 0.3), 0.5, 1.4)
    canvas.paint(window, mask, material, TREE if top >= 1.5 else LOW_VEGETATION, factor=factor)
    canvas.raise_surface(window, mask, height, sensed_m=height)


def car(canvas: Canvas, palette: Palette, pose: Pose) -> bool:
    """One car (4 to 5 m) or, one in ten, a van; False when the place is taken or outside."""
    rng = palette.rng
    van = rng.random() < 0.1
    length = float(rng.uniform(5.0, 6.8) if van else rng.uniform(3.7, 4.9))
    width = float(rng.uniform(1.9, 2.2) if van else rng.uniform(1.65, 1.95))
    top = float(rng.uniform(1.9, 2.6) if van else rng.uniform(1.35, 1.75))
    patch = canvas.patch(*pose, length / 2 + 0.3, width / 2 + 0.3)
    if patch is None:
        return False
    window, a, b = patch.window, patch.s / (length / 2), patch.t / (width / 2)
    body = (np.abs(a) ** 6 + np.abs(b) ** 6) < 1
    if (canvas.taken[window] & body).any() or not body.any():
        return False
    bonnet = float(rng.uniform(0.75, 0.95)) if not van else top * 0.8
    cabin = np.clip((0.62 - np.abs(a + 0.08)) / 0.18, 0, 1) if not van else np.clip((0.7 - a) / 0.1, 0, 1)
    height = (bonnet + (top - bonnet) * cabin - 0.08 * b * b).astype(np.float32)
    paint = palette.car_paint()
    shine = 1 + 0.12 * b * float(rng.choice((-1.0, 1.0)))
    canvas.paint(window, body, paint, CAR, factor=shine)
    glass = vary(rng, (0.14, 0.18, 0.20), 0.25)
    if canvas.gsd_m < 0.35:
        front = (np.abs(a - 0.36) < 0.10) if not van else (np.abs(a - 0.68) < 0.09)
        rear = (np.abs(a + 0.56) < 0.07) & (not van)
        sides = (np.abs(b) > 0.74) & (np.abs(a + 0.1) < 0.5) & (not van)
        canvas.paint(window, body & (front | rear | sides) & (np.abs(b) < 0.9), glass)
    canvas.taken[window] |= body
    seen = rng.random() < canvas.survey.car_share
    canvas.raise_surface(window, body, height, sensed_m=height if seen else None)
    return True


def gone_car(canvas: Canvas, pose: Pose) -> None:
    """A car that stood there during the height survey and left before the image was taken."""
    patch = canvas.patch(*pose, 2.3, 0.9)
    if patch is not None:
        body = (np.abs(patch.s) < 2.2) & (np.abs(patch.t) < 0.9) & ~canvas.taken[patch.window]
        canvas.sense(patch.window, body, 1.5)


def sides(rng: Rng, low: float, high: float) -> tuple[float, float]:
    """Two lengths of a box, drawn alike."""
    length, width = rng.uniform(low, high, 2).tolist()
    return length, width


def box(
    canvas: Canvas,
    palette: Palette,
    pose: Pose,
    length: float,
    width: float,
    height_m: float,
    *,
    label: int = CLUTTER,
    colour: tuple[float, float, float] | Material | None = None,
    round_: bool = False,
) -> bool:
    """A plain solid: container, awning, pile, table, wall; flat ones are drawn paint."""
    patch = canvas.patch(*pose, length / 2, width / 2)
    if patch is None:
        return False
    a, b = patch.s / (length / 2), patch.t / (width / 2)
    mask = (a * a + b * b < 1) if round_ else (np.abs(a) < 1) & (np.abs(b) < 1)
    if (canvas.taken[patch.window] & mask).any() or not mask.any():
        return False
    canvas.paint(patch.window, mask, palette.thing() if colour is None else colour, label)
    canvas.taken[patch.window] |= mask
    if height_m > 0.05:
        seen = palette.rng.random() < 0.8
        canvas.raise_surface(patch.window, mask, height_m, sensed_m=height_m if seen else None)
    return True


def rubble(canvas: Canvas, palette: Palette, x: float, y: float, radius: float) -> None:
    """A heap of earth, stone or scrap."""
    rng = palette.rng
    patch = canvas.patch(x, y, 0.0, radius * 1.3, radius * 1.3)
    if patch is None:
        return
    window = patch.window
    dist = np.hypot(patch.s, patch.t) / radius + 0.2 * canvas.grain(window, 0.9)
    mask = (dist < 1) & ~canvas.taken[window]
    top = float(rng.uniform(0.3, 0.6)) * radius
    height = np.maximum(top * (1 - dist) + 0.1 * canvas.grain(window, 0.3), 0.05).astype(np.float32)
    base = palette.soil() if rng.random() < 0.6 else palette.paving()
    canvas.paint(window, mask, base, CLUTTER)
    for _ in range(int(rng.integers(0, 12))):
        s, t = rng.normal(0, 0.4 * radius, 2)
        spot = mask & (np.abs(patch.s - s) < 0.5) & (np.abs(patch.t - t) < 0.35)
        canvas.paint(window, spot, palette.thing())
    canvas.taken[window] |= mask
    canvas.raise_surface(window, mask, height, sensed_m=height)
