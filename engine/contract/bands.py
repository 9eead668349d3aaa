"""What each band of a sensor means and how a network sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.contract.sensors import Sensor

Curve = Literal["linear", "asinh"]


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band in raw sensor units, and its normalisation.

    ``y = (curve(clip(x, clip_min, clip_max)) - offset) * scale``. The curve ``asinh`` is linear below one unit
    and logarithmic above, so that a 1.5 m car keeps its share of an 8-bit range that also holds a 40 m tower.

    Raises:
        ValueError: a number is not finite, the clip range is empty, or the scale is not positive.
    """

    name: str
    unit: str
    clip_min: float
    clip_max: float
    curve: Curve
    offset: float
    scale: float

    def __post_init__(self) -> None:
        for field in ("clip_min", "clip_max", "offset", "scale"):
            if not math.isfinite(getattr(self, field)):
                raise ValueError(f"band {self.name!r}: {field} must be finite, received {getattr(self, field)}")
        if not self.clip_min < self.clip_max:
            raise ValueError(
                f"band {self.name!r}: clip_min must be below clip_max, received {self.clip_min} and {self.clip_max}"
            )
        if self.scale <= 0:
            raise ValueError(f"band {self.name!r}: scale must be positive, received {self.scale}")


@dataclass(frozen=True, kw_only=True)
class SensorSpec:
    """What a graph expects of one sensor: its bands in order and the dtype of the raw values.

    Raises:
        ValueError: there is no band.
    """

    sensor: Sensor
    dtype: Literal["uint8", "float32"]
    bands: tuple[Band, ...]

    def __post_init__(self) -> None:
        if not self.bands:
            raise ValueError(f"sensor {self.sensor}: at least one band is needed, received none")


def normalise(raw: NDArray[np.generic], bands: Sequence[Band]) -> NDArray[np.float32]:
    """What the graph computes on its input, in numpy: the oracle that exported graphs are tested against.

    Args:
        raw: [..., B, H, W] in raw sensor units, finite.
        bands: B bands.

    Returns:
        float32 [..., B, H, W]; RGIR lies in [-1, 1].

    Raises:
        ValueError: the band axis of ``raw`` does not match ``bands``.
    """
    if raw.ndim < 3 or raw.shape[-3] != len(bands):
        raise ValueError(f"expected [..., {len(bands)}, H, W], received shape {raw.shape}")

    def column(field: str) -> NDArray[np.float32]:
        return np.array([getattr(band, field) for band in bands], np.float32)[:, None, None]

    clipped = np.clip(raw.astype(np.float32), column("clip_min"), column("clip_max"))
    log_like = np.array([band.curve == "asinh" for band in bands])[:, None, None]
    curved = np.where(log_like, np.arcsinh(clipped), clipped)
    return ((curved - column("offset")) * column("scale")).astype(np.float32)


def rgir_spec() -> SensorSpec:
    """NIR, red, green as 8-bit digital numbers, mapped to [-1, 1]."""
    return SensorSpec(
        sensor=Sensor.RGIR,
        dtype="uint8",
        bands=tuple(
            Band(name=name, unit="DN", clip_min=0.0, clip_max=255.0, curve="linear", offset=127.5, scale=1 / 127.5)
            for name in ("nir", "red", "green")
        ),
    )


def ndsm_spec(curve: Curve = "asinh") -> SensorSpec:
    """Height above ground in metres on one fixed scale (never per-tile min-max).

    ``asinh`` covers -2..60 m in about [-1.2, 1.3]; ``linear`` maps -2..38 m to [-1, 1], the range of a tanh.
    """
    if curve == "asinh":
        band = Band(name="height", unit="m", clip_min=-2.0, clip_max=60.0, curve=curve, offset=1.6, scale=0.4)
    else:
        band = Band(name="height", unit="m", clip_min=-2.0, clip_max=38.0, curve=curve, offset=18.0, scale=1 / 20)
    return SensorSpec(sensor=Sensor.NDSM, dtype="float32", bands=(band,))
