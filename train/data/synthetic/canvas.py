"""The drawing surface: colour, height, label and occupancy rasters addressed in metres.

World coordinates are metres, x to the right and y down, with (0, 0) at the top left corner of
the delivered scene. The canvas reaches `margin_px` further on every side, so that objects just
outside the scene still cut into it and throw their shadows over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
Window = tuple[slice, slice]
Colour = tuple[float, float, float]
Scalar = TypeVar("Scalar", bound=np.generic)

IMPERVIOUS, BUILDING, LOW_VEGETATION, TREE, CAR, CLUTTER = range(6)

# Cell sizes of the noise fields that every texture is mixed from.
GRAIN_SCALES_M = (0.1, 0.3, 0.9, 2.7, 8.0, 25.0)
FINER = {m: GRAIN_SCALES_M[max(i - 1, 0)] for i, m in enumerate(GRAIN_SCALES_M)}


def value_noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> F32:
    """Smooth random field of zero mean and about unit deviation, float32 [H,W].

    `cell_px` is the distance between independent values. White noise below 1.3 pixels.
    """
    height, width = shape
    if cell_px < 1.3:
        return rng.standard_normal(shape, dtype=np.float32)
    if cell_px < 5.0:
        sigma = cell_px / 2.5
        field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
        return (field / max(float(field.std()), 1e-6)).astype(np.float32)
    rows, cols = int(height / cell_px) + 3, int(width / cell_px) + 3
    lattice = rng.standard_normal((rows, cols), dtype=np.float32)
    y = (np.arange(height) / cell_px + rng.random()).astype(np.float32)
    x = (np.arange(width) / cell_px + rng.random()).astype(np.float32)
    yi, xi = y.astype(np.intp), x.astype(np.intp)
    fy, fx = y - yi, x - xi
    fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    tall = lattice[yi] * (1 - fy)[:, None] + lattice[yi + 1] * fy[:, None]
    field = tall[:, xi] * (1 - fx) + tall[:, xi + 1] * fx
    return (field * 1.35).astype(np.float32)  # interpolation lowers the deviation to ~0.74


@dataclass(frozen=True, kw_only=True)
class Material:
    """Two NIR-R-G colours (0..1) mixed by noise of `patch_m`, plus fine grain."""

    colour: Colour
    other: Colour
    patch_m: float = 1.0
    mix: float = 0.5
    grain: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A window of the canvas with local coordinates s, t (metres) of an oriented box."""

    window: Window
    s: F32
    t: F32


@dataclass(frozen=True, kw_only=True)
class Survey:
    """How the height survey differs from the moment the image was taken.

    `lean_x`, `lean_y`: horizontal displacement in metres per metre of height, because the image
    is no true orthophoto. The shares are the probability that the survey saw such an object.
    `tree_swell_m`: how far raised ground reaches beyond a crown's visible edge.
    """

    lean_x: float
    lean_y: float
    car_share: float
    tree_share: float
    tree_penetration: float
    tree_swell_m: float


class Canvas:
    """Rasters of one scene under construction; all [H,W] (colour [3,H,W]), margin included."""

    def __init__(
        self,
        size_px: tuple[int, int],
        gsd_m: float,
        margin_px: int,
        survey: Survey,
        rng: np.random.Generator,
    ) -> None:
        self.gsd_m = gsd_m
        self.margin_px = margin_px
        self.survey = survey
        self.shape = (size_px[0] + 2 * margin_px, size_px[1] + 2 * margin_px)
        self.y: F32 = ((np.arange(self.shape[0]) + 0.5 - margin_px) * gsd_m).astype(np.float32)
        self.x: F32 = ((np.arange(self.shape[1]) + 0.5 - margin_px) * gsd_m).astype(np.float32)
        self.colour: F32 = np.zeros((3, *self.shape), np.float32)
        self.surface: F32 = np.zeros(self.shape, np.float32)  # heights when the image was taken
        self.sensed: F32 = np.zeros(self.shape, np.float32)  # heights when they were surveyed
        self.slope_x: F32 = np.zeros(self.shape, np.float32)
        self.slope_y: F32 = np.zeros(self.shape, np.float32)
        self.label = np.full(self.shape, IMPERVIOUS, np.uint8)
        self.taken: Mask = np.zeros(self.shape, np.bool_)
        self._grain = {m: value_noise(rng, self.shape, m / gsd_m) for m in GRAIN_SCALES_M}

    @property
    def extent_m(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the canvas in metres, margin included."""
        half = self.gsd_m / 2
        return (
            float(self.x[0]) - half,
            float(self.y[0]) - half,
            float(self.x[-1]) + half,
            float(self.y[-1]) + half,
        )

    def grain(self, window: Window, scale_m: float) -> F32:
        """Noise with cells of one of `GRAIN_SCALES_M`; a place always gives the same values."""
        return self._grain[scale_m][window]

    def window(self, left: float, top: float, right: float, bottom: float) -> Window | None:
        """Pixels touched by a box in metres, or None when it lies outside the canvas."""
        g, m = self.gsd_m, self.margin_px
        r0 = max(math.floor(top / g) + m, 0)
        r1 = min(math.ceil(bottom / g) + m, self.shape[0])
        c0 = max(math.floor(left / g) + m, 0)
        c1 = min(math.ceil(right / g) + m, self.shape[1])
        if r1 - r0 < 2 or c1 - c0 < 2:
            return None
        return slice(r0, r1), slice(c0, c1)

    def patch(self, x: float, y: float, angle: float, half_s: float, half_t: float) -> Patch | None:
        """Window around an oriented box, or None when the box lies outside the canvas."""
        cos, sin = math.cos(angle), math.sin(angle)
        ex = abs(cos) * half_s + abs(sin) * half_t + self.gsd_m
        ey = abs(sin) * half_s + abs(cos) * half_t + self.gsd_m
        window = self.window(x - ex, y - ey, x + ex, y + ey)
        if window is None:
            return None
        dy, dx = self.y[window[0]][:, None] - y, self.x[window[1]][None, :] - x
        return Patch(window=window, s=dx * cos + dy * sin, t=dy * cos - dx * sin)

    def shade(self, window: Window, material: Material) -> list[F32]:
        """The three colour bands of a material over a window."""
        m = material
        # A second, finer field breaks up the outlines of the patches.
        field = 0.8 * self.grain(window, m.patch_m) + 0.5 * self.grain(window, FINER[m.patch_m])
        blend = np.minimum(np.maximum(0.5 + m.mix * field, 0), 1)
        grain = 1 + m.grain * (
            0.6 * self.grain(window, 0.1) + 0.5 * self.grain(window, 0.3) + 0.5 * self.grain(window, 2.7)
        )
        return [(a + (b - a) * blend) * grain for a, b in zip(m.colour, m.other, strict=True)]

    def paint(
        self,
        window: Window,
        mask: Mask,
        material: Material | Colour,
        label: int | None = None,
        *,
        factor: F32 | float = 1.0,
    ) -> None:
        """Colour the masked pixels and, when given, label them."""
        bands: Sequence[F32 | float] = self.shade(window, material) if isinstance(material, Material) else material
        for band, value in zip(self.colour, bands, strict=True):
            np.copyto(band[window], value * factor, where=mask, casting="same_kind")
        if label is not None:
            np.copyto(self.label[window], np.uint8(label), where=mask)

    def tint(self, window: Window, mask: Mask, factor: NDArray[np.floating[Any]] | float) -> None:
        """Multiply the colour of the masked pixels."""
        for band in self.colour:
            view = band[window]
            np.multiply(view, factor, out=view, where=mask)

    def raise_surface(
        self,
        window: Window,
        mask: Mask,
        height_m: NDArray[np.floating[Any]] | float,
        *,
        sensed_m: NDArray[np.floating[Any]] | float | None,
    ) -> None:
        """Set the height under `mask`; the survey gets `sensed_m`, displaced by the lean.

        A height raster must be smooth beyond the mask too: its gradient gives the slope for
        shading; a number is a level top. `sensed_m` None: the survey did not see the object.
        """
        np.copyto(self.surface[window], height_m, where=mask)
        if isinstance(height_m, np.ndarray):
            self._set_slope(self.slope_x[window].T, height_m.T, mask.T)
            self._set_slope(self.slope_y[window], height_m, mask)
        else:
            self.slope_x[window][mask] = 0
            self.slope_y[window][mask] = 0
        if sensed_m is not None:
            self.sense(window, mask, sensed_m)

    def sense(self, window: Window, mask: Mask, sensed_m: F32 | float) -> None:
        """Let the survey alone see heights under `mask`, displaced by the lean."""
        if not mask.any():
            return
        if not isinstance(sensed_m, np.ndarray):
            sensed_m = np.full(mask.shape, sensed_m, np.float32)
        top = float(sensed_m[mask].max())
        dr = round(self.survey.lean_y * top / self.gsd_m)
        dc = round(self.survey.lean_x * top / self.gsd_m)
        rows, cols = window
        r0, c0 = max(rows.start + dr, 0), max(cols.start + dc, 0)
        r1 = min(rows.stop + dr, self.shape[0])
        c1 = min(cols.stop + dc, self.shape[1])
        if r1 <= r0 or c1 <= c0:
            return
        part = (
            slice(r0 - dr - rows.start, r1 - dr - rows.start),
            slice(c0 - dc - cols.start, c1 - dc - cols.start),
        )
        view = self.sensed[r0:r1, c0:c1]
        np.maximum(view, sensed_m[part], out=view, where=mask[part])

    def _set_slope(self, slope: F32, height_m: F32, mask: Mask) -> None:
        """Central differences of `height_m` along the first axis, clipped to +-2."""
        rise = np.empty_like(slope)
        rise[1:-1] = (height_m[2:] - height_m[:-2]) * (0.5 / self.gsd_m)
        rise[0] = (height_m[1] - height_m[0]) / self.gsd_m
        rise[-1] = (height_m[-1] - height_m[-2]) / self.gsd_m
        np.copyto(slope, np.minimum(np.maximum(rise, -2), 2), where=mask)

    def crop(self, raster: NDArray[Scalar]) -> NDArray[Scalar]:
        """The delivered part of a raster [...,H,W], margin cut off."""
        m = self.margin_px
        return np.ascontiguousarray(raster[..., m : self.shape[0] - m, m : self.shape[1] - m])
