"""Ways in which a sensor delivers something wrong that looks right, each by a strength.

They are made tile by tile from what the sensor saw. ``--inject`` takes them; ``engine.acceptance --degradations``
measures what each of them does to the map, and from which strength on it is seen.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    unseen: bool = False
    """No rule and no limit was made by looking at what this does: it says how far those carry."""


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
    """Another place with the same statistics: the tile turned by so many right angles, from 4 on mirrored too."""
    turned = np.rot90(values, int(strength) % 4, axes=(1, 2))
    return turned[:, :, ::-1] if strength >= 4 else turned


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


def _smeared(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """The mean of so many pixels along each row: something moved while it was exposed."""
    width = max(1, int(strength))
    padded = np.pad(values, ((0, 0), (0, 0), (width, 0)), mode="symmetric")
    sums = np.cumsum(padded, axis=2, dtype=np.float64)
    smeared: NDArray[np.float32] = ((sums[:, :, width:] - sums[:, :, :-width]) / width).astype(np.float32)
    return smeared


def _torn(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """The lower half is read out later, when the place has moved on by so many pixels."""
    torn, half = values.copy(), values.shape[1] // 2
    torn[:, half:] = np.roll(values[:, half:], int(strength), axis=2)
    return torn


def _parted(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """The first band lies so many pixels to the right of the others, the last as many to the left."""
    parted = values.copy()
    parted[0], parted[-1] = np.roll(values[0], int(strength), axis=1), np.roll(values[-1], -int(strength), axis=1)
    return parted


def _gamma(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """A power: of grey levels as shares of 255, or of heights in metres."""
    if len(values) > 1:
        return 255 * (values / 255) ** np.float32(strength)
    return np.sign(values) * np.abs(values) ** np.float32(strength)


def _quantised(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return np.round(values / np.float32(strength)) * np.float32(strength)


def _wrapped(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """What a number that is too small for it makes of a height."""
    return np.mod(values, np.float32(strength))


def _clipped(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    return np.minimum(values, np.float32(strength))


def _stripes(values: NDArray[np.float32], strength: float, device: np.random.Generator, _: object) -> Values:
    """Every row of a detector has an offset of its own."""
    return values + np.float32(strength) * device.standard_normal((len(values), values.shape[1], 1), np.float32)


def _grain(values: NDArray[np.float32], strength: float, _: np.random.Generator, moment: np.random.Generator) -> Values:
    return values + np.float32(strength) * moment.standard_normal(values.shape, np.float32)


def _lumps(values: NDArray[np.float32], strength: float, _: np.random.Generator, moment: np.random.Generator) -> Values:
    """Noise that is the same in squares of 16 px."""
    bands, height, width = values.shape
    lumps = moment.standard_normal((bands, -(-height // 16), -(-width // 16)), np.float32)
    return values + np.float32(strength) * lumps.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]


def _tinted(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """The gain of the first band alone."""
    tinted = values.copy()
    tinted[0] *= np.float32(strength)
    return tinted


def _blocks(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    """JPEG of so poor a quality, heights as decimetres."""
    per_level = 1.0 if len(values) > 1 else 0.1
    shown = np.clip(np.rint(values / per_level), 0, 255).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(np.moveaxis(shown, 0, 2) if len(shown) > 1 else shown[0]).save(
        packed, "JPEG", quality=int(strength)
    )
    read = np.asarray(Image.open(packed), np.float32)
    return np.float32(per_level) * (np.moveaxis(read, 2, 0) if len(shown) > 1 else read[None])


def _upside_down(values: NDArray[np.float32], *_: object) -> Values:
    return -values


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
        change=_elsewhere,
        strengths={RGIR: (1, 2, 4), NDSM: (1, 2, 4)},
        means="right angles by which the tile is turned",
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
    "smeared": Degradation(change=_smeared, strengths={RGIR: (9, 25, 75), NDSM: (9, 25, 75)}, means="px along rows"),
    "torn": Degradation(
        change=_torn, strengths={RGIR: (15, 65, 161), NDSM: (15, 65, 161)}, means="px of the lower half"
    ),
    "parted": Degradation(change=_parted, strengths={RGIR: (1, 3, 8, 24)}, means="px between the bands", unseen=True),
    "gamma": Degradation(
        change=_gamma, strengths={RGIR: (0.4, 0.7, 1.5, 2.5), NDSM: (0.4, 0.7, 1.4)}, means="power", unseen=True
    ),
    "quantised": Degradation(
        change=_quantised, strengths={RGIR: (8, 32, 64), NDSM: (0.5, 2, 5)}, means="DN or m", unseen=True
    ),
    "wrapped": Degradation(change=_wrapped, strengths={NDSM: (12.8, 6.4, 3.2)}, means="m after which 0 comes again"),
    "clipped": Degradation(
        change=_clipped, strengths={RGIR: (150, 110, 80), NDSM: (8, 4, 2)}, means="DN or m of the highest"
    ),
    "stripes": Degradation(change=_stripes, strengths={RGIR: (4, 12, 40), NDSM: (0.3, 1, 3)}, means="DN or m"),
    "grain": Degradation(change=_grain, strengths={RGIR: (5, 10, 20, 60), NDSM: (0.2, 0.5, 1.2, 4)}, means="DN or m"),
    "lumps": Degradation(change=_lumps, strengths={RGIR: (5, 15, 40), NDSM: (0.3, 1, 3)}, means="DN or m"),
    "tinted": Degradation(
        change=_tinted, strengths={RGIR: (1.5, 0.6, 0.3)}, means="gain of the first band", unseen=True
    ),
    "blocks": Degradation(
        change=_blocks, strengths={RGIR: (50, 15, 4), NDSM: (50, 15, 4)}, means="quality of JPEG", unseen=True
    ),
    "negative": Degradation(change=_upside_down, strengths={NDSM: (1,)}, means="any: the sign is changed", unseen=True),
}
