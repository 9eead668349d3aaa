"""Colours in NIR-R-G as a processed aerial image shows them (0..1, before illumination).

Sealed surfaces lean to cyan (NIR a little under R and G), vegetation to red, clay tiles to
yellow-green, water and shade to dark blue-green. Each scene draws one `Palette`, so that what
stands side by side in the world (roofs of one region, trees of one season) looks alike, and
then gets its own gains, haze and gamma in `optics.py`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from train.data.synthetic.canvas import Colour, Material

Rng = np.random.Generator

ROOFS: dict[str, Colour] = {
    "clay": (0.64, 0.77, 0.56),
    "old_clay": (0.60, 0.70, 0.58),
    "dark_clay": (0.44, 0.46, 0.37),
    "red_paint": (0.68, 0.66, 0.38),
    "slate": (0.30, 0.34, 0.37),
    "bitumen": (0.24, 0.27, 0.29),
    "gravel": (0.50, 0.55, 0.55),
    "concrete": (0.60, 0.67, 0.67),
    "white": (0.85, 0.92, 0.92),
    "metal": (0.55, 0.64, 0.68),
    "blue_metal": (0.38, 0.42, 0.62),
    "copper": (0.40, 0.48, 0.58),
    "brown": (0.47, 0.44, 0.38),
    "green": (0.52, 0.37, 0.39),
}
PITCHED_ROOFS = (
    "clay", "old_clay", "dark_clay", "red_paint", "slate", "metal", "blue_metal", "copper", "brown",
)  # fmt: skip
FLAT_ROOFS = ("bitumen", "gravel", "concrete", "white", "metal", "slate", "brown", "old_clay")

CAR_PAINTS: tuple[tuple[Colour, float], ...] = (
    ((0.86, 0.92, 0.92), 0.28),  # white
    ((0.62, 0.67, 0.68), 0.20),  # silver
    ((0.38, 0.42, 0.44), 0.15),  # grey
    ((0.10, 0.12, 0.13), 0.20),  # black
    ((0.60, 0.62, 0.14), 0.06),  # red: bright in R and NIR, dark in G
    ((0.28, 0.18, 0.30), 0.07),  # blue, often with some NIR
    ((0.50, 0.22, 0.30), 0.03),  # green or blue paint that reflects NIR
    ((0.78, 0.80, 0.62), 0.01),  # yellow
)

CAR_SHARES = np.cumsum([share for _, share in CAR_PAINTS])[:-1]

BRIGHT_THINGS: tuple[Colour, ...] = (
    (0.86, 0.52, 0.84),  # magenta awning
    (0.92, 0.90, 0.42),  # yellow or orange cloth
    (0.90, 0.95, 0.95),  # white
    (0.30, 0.35, 0.70),  # blue container
    (0.55, 0.58, 0.20),  # red container
    (0.20, 0.30, 0.32),  # dark
    (0.45, 0.60, 0.45),  # timber
    (0.60, 0.68, 0.66),  # concrete
)


def vary(rng: Rng, colour: Colour, value: float = 0.12, hue: float = 0.05) -> Colour:
    """A colour of random brightness and, less, of random hue; within 0.02..1."""
    gain = float(np.exp(rng.normal(0, value)))
    n, r, g = (float(np.clip(c * gain * np.exp(rng.normal(0, hue)), 0.02, 1.0)) for c in colour)
    return (n, r, g)


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    n, r, g = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return (n, r, g)


class Palette:
    """What the materials of one scene have in common; every method draws one more of a kind."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.vigour = float(np.clip(rng.beta(2.2, 1.3), 0.05, 1))  # of grass: 0 dry .. 1 lush
        self.leaf = float(np.clip(rng.beta(2.5, 1.0), 0.05, 1))  # of trees: 0 bare .. 1 full leaf
        self.flat_share = float(rng.beta(0.8, 1.0))
        self.pitched = rng.dirichlet(np.full(len(PITCHED_ROOFS), 0.5) * (3, 2, 2, 1, 2, 1, 1, 1, 1))
        self.flat = rng.dirichlet(np.full(len(FLAT_ROOFS), 0.7))
        self.green_roof_share = float(rng.choice((0.0, 0.04, 0.2), p=(0.5, 0.4, 0.1)))
        self.road_value = float(rng.uniform(0.34, 0.68))
        self.paving_value = float(rng.uniform(0.5, 0.82))
        self.canopy: Colour = vary(rng, (0.56, 0.26, 0.30), 0.12, 0.10)
        self.soil_colour: Colour = (
            vary(rng, (0.46, 0.64, 0.58), 0.12, 0.06)
            if rng.random() < 0.6
            else vary(rng, (0.34, 0.36, 0.34), 0.15, 0.07)
        )

    def _sealed(self, value: float) -> Colour:
        return vary(self.rng, (value * 0.86, value * 1.01, value * 1.02), 0.07, 0.025)

    def asphalt(self) -> Material:
        """Roads: one tone with worn patches and repairs."""
        a = self._sealed(self.road_value)
        other = self._sealed(self.road_value * float(self.rng.uniform(0.8, 1.25)))
        return Material(
            colour=a, other=other, patch_m=float(self.rng.choice((0.9, 2.7, 8.0))),
            mix=float(self.rng.uniform(0.1, 0.5)), grain=float(self.rng.uniform(0.01, 0.06)),
        )  # fmt: skip

    def paving(self) -> Material:
        """Pavements, yards and squares; a tenth of it reddish brick or yellowish gravel."""
        rng = self.rng
        a = self._sealed(self.paving_value * rng.uniform(0.85, 1.12))
        kind = rng.random()
        if kind < 0.12:
            a = vary(rng, (0.58, 0.60, 0.48), 0.12, 0.04)
        elif kind < 0.25:
            a = vary(rng, (0.60, 0.60, 0.55), 0.12, 0.04)
        other = vary(rng, a, 0.12, 0.03)
        return Material(
            colour=a, other=other, patch_m=(0.3, 0.9, 2.7, 8.0)[int(rng.integers(4))],
            mix=float(rng.uniform(0.1, 0.5)), grain=float(rng.uniform(0.02, 0.08)),
        )  # fmt: skip

    def lawn(self) -> Material:
        """Grass between lush and dry, with bare or weedy patches."""
        rng = self.rng
        lush = vary(rng, (0.62, 0.29, 0.34), 0.14, 0.07)
        dry = vary(rng, (0.55, 0.50, 0.47), 0.12, 0.05)
        vigour = float(np.clip(self.vigour + rng.normal(0, 0.22), 0, 1))
        a = blend(dry, lush, vigour)
        b = blend(dry, lush, float(np.clip(vigour + rng.normal(0, 0.35), 0, 1)))
        return Material(
            colour=a, other=vary(rng, b, 0.1), patch_m=(0.3, 0.9, 2.7, 8.0)[int(rng.integers(4))],
            mix=float(rng.uniform(0.1, 0.7)), grain=float(rng.uniform(0.03, 0.14)),
        )  # fmt: skip

    def soil(self) -> Material:
        """Bare earth, stubble, sand: cyan-ish and bright, or dark when moist."""
        rng = self.rng
        a = vary(rng, self.soil_colour, 0.12, 0.04)
        return Material(
            colour=a, other=vary(rng, a, 0.16, 0.03), patch_m=float(rng.choice((2.7, 8.0, 25.0))),
            mix=float(rng.uniform(0.2, 0.8)), grain=float(rng.uniform(0.02, 0.08)),
        )  # fmt: skip

    def crop(self) -> Material:
        """Arable crops: even, from dull dark red to bright pink."""
        rng = self.rng
        a = vary(rng, blend((0.46, 0.28, 0.33), (0.66, 0.30, 0.36), float(rng.random())), 0.1)
        b = blend(a, vary(rng, self.soil_colour), float(rng.uniform(0, 0.5)))
        return Material(
            colour=a, other=b, patch_m=float(rng.choice((8.0, 25.0))),
            mix=float(rng.uniform(0.05, 0.5)), grain=float(rng.uniform(0.02, 0.08)),
        )  # fmt: skip

    def meadow(self) -> Material:
        """Rough grassland: red tufts in grey-brown."""
        rng = self.rng
        a = vary(rng, blend((0.47, 0.40, 0.41), (0.50, 0.30, 0.35), self.vigour), 0.1)
        b = vary(rng, blend((0.45, 0.42, 0.40), (0.66, 0.26, 0.34), float(rng.random())), 0.1)
        return Material(
            colour=a, other=b, patch_m=float(rng.choice((0.9, 2.7, 8.0, 25.0))),
            mix=float(rng.uniform(0.4, 1.0)), grain=float(rng.uniform(0.08, 0.2)),
        )  # fmt: skip

    def crown(self, *, conifer: bool = False) -> Material:
        """Foliage: mostly the scene's own, some copper, dull, or nearly bare crowns."""
        rng = self.rng
        if conifer:
            a = vary(rng, (0.36, 0.22, 0.26), 0.15, 0.08)
        else:
            a = vary(rng, self.canopy, 0.13, 0.09)
            odd = rng.random()
            if odd < 0.10:
                a = vary(rng, (0.54, 0.42, 0.30), 0.12, 0.08)  # copper beech, autumn
            elif odd < 0.22:
                a = vary(rng, (0.74, 0.22, 0.31), 0.08, 0.06)  # bright garden trees
            leaf = min(max(self.leaf + float(rng.normal(0, 0.15)), 0.0), 1.0)
            bare = vary(rng, (0.42, 0.35, 0.41), 0.1, 0.05)
            a = blend(bare, a, min(1.0, 0.15 + 1.2 * leaf))
        b = vary(rng, a, 0.15, 0.06)
        return Material(
            colour=a, other=b, patch_m=(0.3, 0.9, 2.7)[int(rng.integers(3))],
            mix=float(rng.uniform(0.2, 0.8)), grain=float(rng.uniform(0.06, 0.2)),
        )  # fmt: skip

    def roof(self, *, flat: bool) -> tuple[str, Material]:
        """A roof kind with its material; pitched or flat."""
        rng = self.rng
        if flat and rng.random() < self.green_roof_share:
            lawn = self.lawn()
            return "green", lawn
        kinds, shares = (FLAT_ROOFS, self.flat) if flat else (PITCHED_ROOFS, self.pitched)
        kind = str(rng.choice(kinds, p=shares))
        a = vary(rng, ROOFS[kind], 0.13, 0.04)
        return kind, Material(
            colour=a, other=vary(rng, a, 0.1, 0.03), patch_m=(0.3, 0.9, 2.7)[int(rng.integers(3))],
            mix=float(rng.uniform(0.05, 0.5)), grain=float(rng.uniform(0.01, 0.08)),
        )  # fmt: skip

    def wall(self) -> Colour:
        """Walls, kerbs and concrete edges."""
        return vary(self.rng, (0.68, 0.76, 0.74), 0.14, 0.03)

    def car_paint(self) -> Colour:
        """Body colour of one car."""
        index = int(np.searchsorted(CAR_SHARES, self.rng.random()))
        return vary(self.rng, CAR_PAINTS[index][0], 0.1, 0.06)

    def thing(self) -> Colour:
        """Colour of some clutter object."""
        index = int(self.rng.integers(len(BRIGHT_THINGS)))
        return vary(self.rng, BRIGHT_THINGS[index], 0.15, 0.1)

    def water(self, *, pool: bool) -> Material:
        """A swimming pool (bright cyan-blue) or open water (dark)."""
        rng = self.rng
        base: Colour = (0.22, 0.55, 0.75) if pool else (0.10, 0.24, 0.28)
        a = vary(rng, base, 0.2, 0.12)
        return Material(colour=a, other=vary(rng, a, 0.08), patch_m=0.9, mix=0.3, grain=0.02)


GAINS: dict[str, Colour] = {
    "grass": (1.30, 0.85, 0.87),
    "leaf": (1.55, 0.87, 0.98),
    "soil": (1.38, 1.24, 1.22),
    "sealed": (0.94, 0.90, 0.87),
    "roof": (1.12, 1.13, 1.14),
}
"""NIR-R-G of NAIP over that of a `Palette`: medians of `python -m benchmarks.gap`."""


class RealPalette(Palette):
    """The colours of NAIP, where streets are also darker. Draws as a `Palette` does: only colours change."""

    def lawn(self) -> Material:
        """Greener grass."""
        return _gained(super().lawn(), "grass")

    def crop(self) -> Material:
        """Greener crops."""
        return _gained(super().crop(), "grass")

    def meadow(self) -> Material:
        """Greener rough grassland."""
        return _gained(super().meadow(), "grass")

    def crown(self, *, conifer: bool = False) -> Material:
        """Foliage that is bright in NIR."""
        return _gained(super().crown(conifer=conifer), "leaf", rough=0.7)

    def soil(self) -> Material:
        """Paler and smoother earth."""
        return _gained(super().soil(), "soil", rough=0.4)

    def roof(self, *, flat: bool) -> tuple[str, Material]:
        """Brighter and smoother roofs."""
        kind, material = super().roof(flat=flat)
        return kind, material if kind == "green" else _gained(material, "roof", rough=0.6)

    def _sealed(self, value: float) -> Colour:
        return _times(super()._sealed(value), GAINS["sealed"])


def _times(colour: Colour, gains: Colour) -> Colour:
    n, r, g = (min(c * gain, 1.0) for c, gain in zip(colour, gains, strict=True))
    return (n, r, g)


def _gained(material: Material, kind: str, *, rough: float = 1.0) -> Material:
    return replace(
        material,
        colour=_times(material.colour, GAINS[kind]),
        other=_times(material.other, GAINS[kind]),
        mix=material.mix * rough,
        grain=material.grain * rough,
    )
