"""When a sensor's tile is suspicious and when it is beyond use: the limits that a bundle carries.

:mod:`engine.health.tile_statistics` says how each is measured, :mod:`engine.health.monitor` what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.contract.errors import UsageError
from engine.contract.formats import MalformedError, from_builtins, from_json, from_toml, read_file
from engine.contract.sensors import Sensor

LIMITS_BYTES = 1 << 20
"""Of a file of limits, at most."""
AUDIT = "audit"
"""The table of a file of limits beside those of the sensors."""
Settings = TypeVar("Settings")


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
class ColourLimits:
    """When the bands of an image cannot be near-infrared, red and green (:mod:`engine.health.colours`).

    The defaults lie beyond every one of 962 clean tiles of five cities (NAIP) and 55 procedural scenes of all styles.
    """

    against: float = 0.15
    """Red and green whose detail is correlated by less than minus this contradict each other: one is inverted."""
    infrared: float = 0.8
    """The same of infrared and one of them: trees on bare soil are bright in the one and dark in the other."""
    reversed: float = 0.4
    """Infrared is inverted where its detail is correlated with red's and green's by so much less than what is coarse:
    shadows and texture show in all bands, whatever vegetation does."""
    parted: float = 0.5
    """Red and green do not go together where their detail, or what is coarse, is correlated by less."""
    alone: float = 0.1
    """Red or green is dead where the correlation of its detail with every other band's is less."""
    together: float = 0.17
    """Nothing is seen where no two bands' detail is correlated by more."""
    structure: float = 1.1
    """Nothing is seen where the image changes by less than so many times as much over 16 px as over one."""
    blurred: float = 9.5
    """Where it changes by more than so many times as much it is out of focus, or was moved."""
    copied_dn: float = 1.0
    """Two bands are copies where their difference varies by less."""
    jumps: float = 0.04
    """Share of neighbouring pixels that differ by about 128 DN: more, and the highest bit is damaged."""
    order: float = 1.6
    """Another band than the first is the infrared where its detail and that of another band leave so many times less
    unexplained of each other than the second's and the third's."""
    shading: float = 0.9
    """Where even that band's detail is correlated with another's by so much all that varies is light, as over a closed
    forest: the order says little then, and an audit alone condemns."""


@dataclass(frozen=True, kw_only=True)
class GroundLimits:
    """When heights do not stand on the ground (:mod:`engine.health.ground`)."""

    low_m: float = -2.5
    high_m: float = 1.4
    """Between these a height is the ground's."""
    grounded: float = 0.4
    """Least share of a tile's 64 blocks in which the ground shows; an audit acquits a closed forest, which has less."""
    below: float = 0.1
    """Largest share of pixels below ``low_m``."""
    rise: float = 0.12
    """Least step over 8 px of a tile of 512, as a share of how high it reaches: walls and crowns are steeper."""


@dataclass(frozen=True, kw_only=True)
class AuditLimits:
    """How the class maps of the three graphs are held against each other (:mod:`engine.health.audit`).

    They belong to the model: ``python -m engine.health.calibrate`` measures them on training scenes.
    """

    every_tiles: int = 150
    """One tile in so many is audited, and one more where a cheap sign is odd; 0 never audits."""
    harmless: float = 0.9
    """A sensor whose absence would change the class of fewer pixels than the rest of this share is left in use."""
    agreement: float = 0.7
    """Clean tiles' maps with and without heights agree in at least so many pixels, but for one tile in twenty."""
    grounded: float = 0.6
    """Least share of the pixels that are ground by the image whose heights lie within :attr:`near_m` of 0, in a tile
    whose ground is in doubt."""
    near_m: float = 1.4
    ranks: float = 0.7
    """Least probability that what is raised by the image is higher than what is not, where no edges agree."""
    opposed: float = 0.55
    """The same where some do."""
    apart: float = 0.3
    """Where edges agree and the maps of one sensor each agree in fewer pixels the image is wrong, if it says nothing
    of heights."""
    sigmas: float = 2.4
    """Edges that agree by less, in standard deviations, agree by chance (:class:`engine.health.agreement.Likeness`)."""
    explained: float = 0.15
    """Share of heights that colours explain where the two belong together."""

    def __post_init__(self) -> None:
        if self.every_tiles < 0:
            raise ValueError(f"every_tiles must be at least 0, received {self.every_tiles}")
        for each in fields(self):
            if not math.isfinite(getattr(self, each.name)):
                raise ValueError(f"{each.name} must be finite, received {getattr(self, each.name)}")


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
    colours: ColourLimits | None = ColourLimits()
    """RGIR: when its bands are implausible."""
    ground: GroundLimits | None = GroundLimits()
    """nDSM: when its heights are implausible."""
    repeats: float | None = 0.7
    """A tile whose structure is correlated by more with that of the last one, while the other sensor's is not, is the
    last one again with noise on it."""

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
            ground=None,
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
            colours=None,
        ),
    }


def parse_limits(texts: Sequence[str], base: Mapping[Sensor, HealthLimits]) -> dict[Sensor, HealthLimits]:
    """``--health`` options applied to a bundle's limits of sensors, in order; those of audits are left to others.

    Args:
        texts: each one ``ndsm.max_height_m=80``, ``rgir.noise.soft=12``, ``rgir.noise=off`` or ``audit.agreement=0.6``,
            or the path of a TOML or JSON file with tables ``rgir``, ``ndsm`` and ``audit`` of the same names.
        base: limits of both sensors.

    Raises:
        UsageError: a text is none of these, names no limit of that sensor, or a value makes no sense.
    """
    limits = _applied(texts, base, AuditLimits())
    return _checked({sensor: limits[sensor] for sensor in Sensor}, dict[Sensor, HealthLimits], texts)


def parse_audit(texts: Sequence[str], base: AuditLimits) -> AuditLimits:
    """The same options applied to a bundle's limits of audits.

    Raises:
        UsageError: see :func:`parse_limits`.
    """
    return _checked(_applied(texts, default_limits(), base)[AUDIT], AuditLimits, texts)


def _applied(texts: Sequence[str], sensors: Mapping[Sensor, HealthLimits], audit: AuditLimits) -> dict[str, Any]:
    limits: dict[str, Any] = {**msgspec.to_builtins(sensors), AUDIT: msgspec.to_builtins(audit)}
    for text in texts:
        _merge(limits, _changes(text), text)
    return limits


def _checked(limits: object, kind: type[Settings], texts: Sequence[str]) -> Settings:
    try:
        return from_builtins(limits, kind)
    except MalformedError as error:
        raise UsageError(f"`health` {' '.join(texts)}: {error}: correct it") from error


def _changes(text: str) -> dict[str, Any]:
    """One ``--health`` text as nested tables."""
    if text.endswith((".toml", ".json")) and "=" not in text:
        return _file(Path(text))
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(
            "`health` takes SENSOR.LIMIT=VALUE, as in ndsm.max_height_m=80, rgir.noise.soft=12, rgir.noise=off or "
            f"audit.agreement=0.6, or a .toml or .json file; received {text!r}"
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
        raise UsageError(f"`health` {path} cannot be read ({error.strerror}): check the path") from error
    except MalformedError as error:
        raise UsageError(
            f"`health` {path} cannot be read as tables rgir, ndsm and audit: {error}: correct its content"
        ) from error


def _number(value: str, text: str) -> float | int | str:
    if value == "off":
        return value
    try:
        return int(value) if value.lstrip("+-").isdigit() else float(value)
    except ValueError as error:
        raise UsageError(f"`health` {text}: a number or off is needed, received {value!r}") from error


def _merge(limits: dict[str, Any], changes: Mapping[str, Any], text: str) -> None:
    defaults: dict[str, Any] = {AUDIT: AuditLimits()}
    defaults.update({str(sensor): each for sensor, each in default_limits().items()})
    for sensor, table in changes.items():
        if sensor not in limits or not isinstance(table, dict):
            raise UsageError(f"`health` {text}: begin with one of {', '.join(limits)}, received {sensor!r}")
        known = [name for name in limits[sensor] if getattr(defaults[sensor], name) is not None]
        for name, value in table.items():
            if name not in known:
                raise UsageError(f"`health` {text}: {sensor} has the limits {', '.join(known)}; received {name!r}")
            old = limits[sensor][name]
            if isinstance(value, dict):
                parts = msgspec.to_builtins(getattr(defaults[sensor], name))
                if not isinstance(parts, dict) or (unknown := sorted(set(value) - set(parts))):
                    has = f"has {' and '.join(parts)}" if isinstance(parts, dict) else "is a number"
                    raise UsageError(f"`health` {text}: {name} {has}, received {', '.join(unknown or value)}")
                value = {**(old if isinstance(old, dict) else parts if "soft" not in parts else {}), **value}
            limits[sensor][name] = None if value == "off" else value
