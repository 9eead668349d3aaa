"""What each degradation makes of a tile (:mod:`engine.health.degradations`); NaN is a pixel without data."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[Any]
Change = Callable[[NDArray[np.float32], float, np.random.Generator, np.random.Generator], Values]
"""Takes float32 [B, T, T], the strength, and randomness of the device (the same in every tile) and of the moment."""
OverTiles = Callable[[NDArray[np.float32], float, int, NDArray[np.float32]], Values]
"""Takes float32 [B, T, T], the strength, how many tiles ago it began, and the tile before."""
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


def _gaps(values: NDArray[np.float32], strength: float, device: np.random.Generator, _: object) -> Values:
    """Strips of 8 rows without data, so many of them."""
    rank = device.random(-(-values.shape[1] // 8)).argsort().argsort()
    lost = (rank < strength * len(rank)).repeat(8)[: values.shape[1]]
    return np.where(lost[:, None], np.float32(np.nan), values)


def _checkered(values: NDArray[np.float32], strength: float, *_: object) -> Values:
    rows, cols = (np.arange(size) // max(1, int(strength)) for size in values.shape[1:])
    return np.where((rows[:, None] + cols) % 2 == 0, np.float32(np.nan), values)


def _widening(values: NDArray[np.float32], strength: float, began: int, *_: object) -> Values:
    """A square hole in the middle."""
    side = min(1.0, strength * (began + 1))
    rows, cols = (np.abs(np.arange(size) / size - 0.5) < side / 2 for size in values.shape[1:])
    return np.where(rows[:, None] & cols, np.float32(np.nan), values)


def _lagged(values: NDArray[np.float32], strength: float, _: int, before: NDArray[np.float32]) -> Values:
    rows = round(strength * values.shape[1])
    return np.concatenate([before[:, :rows], values[:, rows:]], axis=1)


def _creeping(values: NDArray[np.float32], strength: float, began: int, *_: object) -> Values:
    """A haze, or an offset."""
    much = strength * (began + 1)
    if len(values) == 1:
        return values + np.float32(much)
    share = np.float32(min(1.0, much))
    return values * (1 - share) + FOG_DN * share


def _flickering(values: NDArray[np.float32], strength: float, began: int, *_: object) -> Values:
    return values if began % int(strength) else np.rot90(values, 2, axes=(1, 2))


def _mixed(
    values: NDArray[np.float32], strength: float, device: np.random.Generator, moment: np.random.Generator
) -> Values:
    """Out of focus, hazy and noisy; or too high, tilted and noisy."""
    if len(values) == 1:
        return _grain(_tilt(values + np.float32(0.7 * strength), 1.5 * strength), 0.3 * strength, device, moment)
    hazy = values * np.float32(1 - 0.2 * strength) + np.float32(0.2 * strength * FOG_DN)
    return _grain(_blur(hazy, 1 + 2 * strength), 5 * strength, device, moment)


CHANGES: Mapping[str, Change] = {
    "offset": _offset,
    "tilt": _tilt,
    "terrain": _terrain,
    "scale": _scale,
    "shift": _shift,
    "elsewhere": _elsewhere,
    "held": _held,
    "blur": _blur,
    "spikes": _spikes,
    "bands": _bands,
    "copied": _copied,
    "inverted": _inverted,
    "bit": _bit,
    "fog": _fog,
    "gain": _gain,
    "vignette": _vignette,
    "smeared": _smeared,
    "torn": _torn,
    "parted": _parted,
    "gamma": _gamma,
    "quantised": _quantised,
    "wrapped": _wrapped,
    "clipped": _clipped,
    "stripes": _stripes,
    "grain": _grain,
    "lumps": _lumps,
    "tinted": _tinted,
    "blocks": _blocks,
    "negative": _upside_down,
    "gaps": _gaps,
    "checkered": _checkered,
    "mixed": _mixed,
}
OVER_TILES: Mapping[str, OverTiles] = {
    "widening": _widening,
    "lagged": _lagged,
    "creeping": _creeping,
    "flickering": _flickering,
}
"""Those that go on from tile to tile."""
