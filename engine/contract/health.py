"""When a sensor's tile is suspicious and when it is beyond use: the limits that a bundle carries.

:mod:`engine.health.symptoms` says how each statistic is measured, :mod:`engine.health.monitor` what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.contract.errors import UsageError
from engine.contract.formats import MalformedError, from_builtins, from_json, from_toml, read_file
from engine.contract.sensors import Sensor

LIMITS_BYTES = 1 << 20
"""Of a file of limits, at most."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Two bounds of one statistic: beyond ``soft`` a tile is suspicious, beyond ``hard`` it is beyond use.

    Raises:
        ValueError: a bound is negative or not finite.
    """

    soft: float
    hard: float

    def __post_init__(self) -> None:
        for name, bound in (("soft", self.soft), ("hard", self.hard)):
            if not (math.isfinite(bound) and bound >= 0):
                raise ValueError(f"the {name} limit must be a finite number of at least 0, received {bound}")


@dataclass(frozen=True, kw_only=True)
class HealthLimits:
    """The limits of one sensor. None: not checked. Shares lie in 0..1; DN are 8-bit digital numbers.

    Raises:
        ValueError: the hard bound of a limit is the milder one, or a number lies outside its range.
    """

    dead_after_tiles: int
    """A sensor is dead with so many suspicious tiles in a row."""
    alive_after_tiles: int
    """A dead sensor is alive again with so many good tiles in a row."""
    constant_below: float | None
    """A tile whose standard deviation is less, in DN or metres, shows one value everywhere."""
    flat_under_edges: Limit | None
    """nDSM: a tile at one height, that of the ground, contradicts an image with so large a share of strong edges."""
    dark: Limit | None
    """RGIR: least 99th percentile of the brightest band, in DN."""
    saturated: Limit | None
    """RGIR: share of values at the upper end of the range."""
    out_of_range: Limit | None
    """nDSM: share of pixels outside ``min_height_m`` to ``max_height_m``."""
    min_height_m: float | None
    max_height_m: float | None
    stuck: Limit | None
    """Share of the columns, or rows, that show one value from end to end and stand out from their neighbours."""
    hole_edges: Limit | None
    """Pairs of neighbouring pixels of which one has data and the other none, per pixel with data: holes scattered over
    the tile have many such pairs, the end of the sensor's coverage has few."""
    noise: Limit | None
    """Standard deviation of the noise, in DN or metres."""
    noise_ratio: float
    """Noise counts only where it is also more than so many times that of the sensor's recent clean tiles."""

    def __post_init__(self) -> None:
        for name in ("dead_after_tiles", "alive_after_tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        for name in ("constant_below", "noise_ratio"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, received {value}")
        for name in ("flat_under_edges", "saturated", "out_of_range", "stuck", "hole_edges", "noise"):
            limit = getattr(self, name)
            if limit is not None and limit.hard < limit.soft:
                raise ValueError(
                    f"{name}: a larger value is worse, so hard must not be below soft, received soft {limit.soft} "
                    f"and hard {limit.hard}"
                )
        if self.dark is not None and self.dark.hard > self.dark.soft:
            raise ValueError(
                f"dark: a smaller value is worse, so hard must not be above soft, received soft {self.dark.soft} "
                f"and hard {self.dark.hard}"
            )
        heights = (self.min_height_m, self.max_height_m)
        if self.out_of_range is not None and (None in heights or not heights[0] < heights[1]):  # type: ignore[operator]
            raise ValueError(f"out_of_range needs min_height_m below max_height_m, received {heights[0]}, {heights[1]}")


def default_limits() -> dict[Sensor, HealthLimits]:
    """Limits for both sensors.

    Each lies between the worst value seen on clean tiles, of real and of procedural scenes of every style, and what
    a moderate fault brings about; ``tests/engine/test_health_on_scenes.py`` holds them to it.
    """
    return {
        Sensor.RGIR: HealthLimits(
            dead_after_tiles=3,
            alive_after_tiles=3,
            constant_below=0.5,
            flat_under_edges=None,
            dark=Limit(soft=40.0, hard=16.0),
            saturated=Limit(soft=0.3, hard=0.5),
            out_of_range=None,
            min_height_m=None,
            max_height_m=None,
            stuck=Limit(soft=0.01, hard=0.03),
            hole_edges=Limit(soft=0.12, hard=0.25),
            noise=Limit(soft=20.0, hard=25.0),
            noise_ratio=2.0,
        ),
        Sensor.NDSM: HealthLimits(
            dead_after_tiles=3,
            alive_after_tiles=3,
            constant_below=0.01,
            flat_under_edges=Limit(soft=0.06, hard=0.12),
            dark=None,
            saturated=None,
            out_of_range=Limit(soft=0.005, hard=0.05),
            min_height_m=-10.0,
            max_height_m=150.0,
            stuck=Limit(soft=0.01, hard=0.03),
            hole_edges=Limit(soft=0.12, hard=0.25),
            noise=Limit(soft=1.0, hard=1.6),
            noise_ratio=2.0,
        ),
    }


def parse_limits(texts: Sequence[str], base: Mapping[Sensor, HealthLimits]) -> dict[Sensor, HealthLimits]:
    """``--health`` options applied to a bundle's limits, in order.

    Args:
        texts: each one ``ndsm.max_height_m=80``, ``rgir.noise.soft=12`` or ``rgir.noise=off``, or the path of a TOML
            or JSON file with tables ``rgir`` and ``ndsm`` of the same names.
        base: limits of both sensors.

    Raises:
        UsageError: a text is none of these, names no limit of that sensor, or a value makes no sense.
    """
    limits: dict[str, Any] = msgspec.to_builtins(base)
    for text in texts:
        _merge(limits, _changes(text), text)
    try:
        return from_builtins(limits, dict[Sensor, HealthLimits])
    except MalformedError as error:
        raise UsageError(f"--health {' '.join(texts)}: {error}: correct it") from error


def _changes(text: str) -> dict[str, Any]:
    """One ``--health`` text as nested tables."""
    if text.endswith((".toml", ".json")) and "=" not in text:
        return _file(Path(text))
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(
            "--health takes SENSOR.LIMIT=VALUE, as in ndsm.max_height_m=80, rgir.noise.soft=12 or rgir.noise=off, or "
            f"a .toml or .json file; received {text!r}"
        )
    nested: Any = _number(value, text)
    for key in reversed(name.split(".")):
        nested = {key: nested}
    return dict(nested)


def _file(path: Path) -> dict[str, Any]:
    try:
        content = read_file(path, LIMITS_BYTES)
        return from_toml(content, dict[str, Any]) if path.suffix == ".toml" else from_json(content, dict[str, Any])
    except OSError as error:
        raise UsageError(f"--health {path} cannot be read ({error.strerror}): check the path") from error
    except MalformedError as error:
        raise UsageError(
            f"--health {path} cannot be read as tables rgir and ndsm: {error}: correct its content"
        ) from error


def _number(value: str, text: str) -> float | int | str:
    if value == "off":
        return value
    try:
        return int(value) if value.lstrip("+-").isdigit() else float(value)
    except ValueError as error:
        raise UsageError(f"--health {text}: a number or off is needed, received {value!r}") from error


def _merge(limits: dict[str, Any], changes: Mapping[str, Any], text: str) -> None:
    defaults = default_limits()
    for sensor, table in changes.items():
        if sensor not in limits or not isinstance(table, dict):
            raise UsageError(f"--health {text}: begin with one of {', '.join(limits)}, received {sensor!r}")
        known = [name for name in limits[sensor] if getattr(defaults[Sensor(sensor)], name) is not None]
        for name, value in table.items():
            if name not in known:
                raise UsageError(f"--health {text}: {sensor} has the limits {', '.join(known)}; received {name!r}")
            old = limits[sensor][name]
            if isinstance(value, dict):
                if unknown := sorted(set(value) - {"soft", "hard"}):
                    raise UsageError(f"--health {text}: {name} has soft and hard, received {', '.join(unknown)}")
                value = {**(old if isinstance(old, dict) else {}), **value}
            limits[sensor][name] = None if value == "off" else value
