"""Ways in which a sensor delivers something wrong that looks right, each by a strength.

They are made tile by tile from what the sensor saw. ``--inject`` takes them; ``engine.acceptance --degradations``
measures what each of them does to the map, and from which strength on it is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.sensors import Sensor

Values = NDArray[Any]
Change = Callable[[NDArray[np.float32], float, np.random.Generator, np.random.Generator], Values]
"""Takes float32 [B, T, T], the strength, and randomness of the device (the same in every tile) and of the moment."""


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """One way to spoil a sensor."""

    change: Change
    strengths: Mapping[Sensor, tuple[float, ...]]
    """For each sensor that it can befall, what acceptance tries, from mild to severe; the last is the default."""
    means: str
    """What the strength says."""


RGIR, NDSM = Sensor.RGIR, Sensor.NDSM
FOG_DN, FOG_NOISE_DN = 200.0, 3.0
SPIKE = {3: 255.0, 1: 25.0}


def _offset(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return values + np.float32(strength)


def _tilt(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return values + np.linspace(0, strength, values.shape[2], dtype=np.float32)


def _terrain(
    values: NDArray[np.float32], strength: float, device: np.random.Generator, _: np.random.Generator
) -> Values:
    """Hills: a few long waves, 0 at their lowest."""
    rows, cols = np.mgrid[: values.shape[1], : values.shape[2]] / values.shape[1]
    waves = [np.cos(6.3 * (a * rows + b * cols) + c) for a, b, c in device.uniform(0.3, 1.5, (3, 3))]
    hills = np.sum(waves, axis=0)
    scaled: NDArray[np.float32] = (strength * (hills - hills.min()) / np.ptp(hills)).astype(np.float32)
    return values + scaled


def _scale(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return values * np.float32(strength)


def _shift(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """Down by 3/5 and to the right by 4/5 of the distance; what enters is mirrored."""
    down, right = round(0.6 * strength), round(0.8 * strength)
    padded = np.pad(values, ((0, 0), (down, 0), (right, 0)), mode="symmetric")
    return padded[:, : values.shape[1], : values.shape[2]]


def _elsewhere(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """Another place with the same statistics: the tile turned by so many right angles."""
    return np.rot90(values, int(strength), axes=(1, 2))


def _held(values: NDArray[np.float32], strength: float, _: np.random.Generator, moment: np.random.Generator) -> Values:
    return values + np.float32(strength) * moment.standard_normal(values.shape, np.float32)


def _blur(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """A box of ``strength`` px, twice along each axis."""
    width = max(1, int(strength))
    for axis in (1, 1, 2, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (width // 2 + 1, width - width // 2 - 1)
        sums = np.cumsum(np.pad(values, pad, mode="symmetric"), axis=axis, dtype=np.float64)
        length = values.shape[axis]
        upper, lower = np.take(sums, range(width, width + length), axis), np.take(sums, range(length), axis)
        values = ((upper - lower) / width).astype(np.float32)
    return values


def _spikes(
    values: NDArray[np.float32], strength: float, _: np.random.Generator, moment: np.random.Generator
) -> Values:
    return np.where(moment.random(values.shape[1:]) < strength, np.float32(SPIKE[len(values)]), values)


def _bands(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    order = [int(digit) - 1 for digit in f"{int(strength):03d}"]
    return values[order]


def _copied(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return np.repeat(values[int(strength) - 1][None], len(values), axis=0)


def _inverted(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    changed = values.copy()
    which = slice(None) if not strength else slice(int(strength) - 1, int(strength))
    changed[which] = 255 - changed[which]
    return changed


def _bit(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return values.astype(np.uint8) & np.uint8(255 - (1 << int(strength)))


def _fog(values: NDArray[np.float32], strength: float, _: np.random.Generator, moment: np.random.Generator) -> Values:
    noise = FOG_NOISE_DN * moment.standard_normal(values.shape, np.float32)
    return values * np.float32(1 - strength) + np.float32(FOG_DN * strength) + noise


def _gain(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return values * np.float32(strength)


def _vignette(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    down, across = (np.linspace(-1, 1, size, dtype=np.float32) for size in values.shape[1:])
    return values * (1 - np.float32(strength / 2) * (down[:, None] ** 2 + across**2))


DEGRADATIONS: Mapping[str, Degradation] = {
    "offset": Degradation(change=_offset, strengths={NDSM: (1, 2, 3, 5, 20, 80)}, means="m added to every height"),
    "tilt": Degradation(change=_tilt, strengths={NDSM: (2, 5, 10, 20)}, means="m from one side of a tile to the other"),
    "terrain": Degradation(change=_terrain, strengths={NDSM: (1, 3, 10)}, means="m of hills that are left in"),
    "scale": Degradation(change=_scale, strengths={NDSM: (2, 3.28, 0.5, 0.3, 0.1)}, means="times the height"),
    "shift": Degradation(change=_shift, strengths={RGIR: (2, 10, 20, 50), NDSM: (2, 10, 20, 50)}, means="px off"),
    "elsewhere": Degradation(
        change=_elsewhere, strengths={RGIR: (1, 2), NDSM: (1, 2)}, means="right angles by which the tile is turned"
    ),
    "held": Degradation(
        change=_held,
        strengths={RGIR: (10, 3, 1), NDSM: (0.3, 0.05, 0.02)},
        means="noise on the tile before the first, again and again, DN or m",
    ),
    "blur": Degradation(change=_blur, strengths={RGIR: (3, 9, 25), NDSM: (3, 9, 25, 81)}, means="px, of a box, twice"),
    "spikes": Degradation(
        change=_spikes, strengths={RGIR: (0.001, 0.01), NDSM: (0.001, 0.01)}, means="share of pixels"
    ),
    "bands": Degradation(
        change=_bands, strengths={RGIR: (132, 321, 231, 312, 213)}, means="which bands are given, as NIR, red, green"
    ),
    "copied": Degradation(change=_copied, strengths={RGIR: (2, 1)}, means="the band that all three show"),
    "inverted": Degradation(change=_inverted, strengths={RGIR: (1, 3, 2, 0)}, means="the inverted band; 0 is all"),
    "bit": Degradation(change=_bit, strengths={RGIR: (4, 5, 6, 7)}, means="the bit that is always 0"),
    "fog": Degradation(
        change=_fog, strengths={RGIR: (0.2, 0.5, 0.8, 0.95, 1.0)}, means="share of 200 DN in every value"
    ),
    "gain": Degradation(change=_gain, strengths={RGIR: (0.3, 0.6, 1.5)}, means="times the grey level"),
    "vignette": Degradation(change=_vignette, strengths={RGIR: (0.4, 0.8)}, means="darkening of the corners"),
}
