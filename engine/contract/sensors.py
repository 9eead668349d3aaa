"""Sensors, scenarios and the only table that maps one to the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType

from engine.contract.errors import UsageError


class Sensor(StrEnum):
    """A sensor that looks down. The value is the graph input's name."""

    RGIR = "rgir"
    """Near-infrared, red, green; uint8 [3, H, W]."""
    NDSM = "ndsm"
    """Height above ground; float32 [1, H, W], metres."""


class Scenario(StrEnum):
    """Which graph runs. The value is the graph's name in a bundle."""

    FULL = "full"
    MISSING_NDSM = "missing_ndsm"
    MISSING_RGIR = "missing_rgir"

    @property
    def sensors(self) -> frozenset[Sensor]:
        """The sensors this scenario's graph reads."""
        return _SENSORS_OF[self]

    @property
    def provenance(self) -> Provenance:
        """What a pixel mapped by this scenario carries in ``provenance.tif``."""
        return Provenance[self.name]


class Provenance(IntEnum):
    """Pixel values of ``provenance.tif``: which sensors a pixel was mapped from."""

    NONE = 0
    FULL = 1
    MISSING_NDSM = 2
    MISSING_RGIR = 3


PROVENANCE_LABELS: Mapping[Provenance, str] = MappingProxyType(
    {
        Provenance.NONE: "no valid sensor",
        Provenance.FULL: "RGIR and nDSM",
        Provenance.MISSING_NDSM: "RGIR only",
        Provenance.MISSING_RGIR: "nDSM only",
    }
)

PROVENANCE_RGB: Mapping[Provenance, tuple[int, int, int]] = MappingProxyType(
    {
        Provenance.NONE: (0, 0, 0),
        Provenance.FULL: (0, 158, 115),
        Provenance.MISSING_NDSM: (230, 159, 0),
        Provenance.MISSING_RGIR: (86, 180, 233),
    }
)
"""Colours that stay apart for colour-blind readers (Okabe and Ito, https://jfly.uni-koeln.de/color/)."""

_SENSORS_OF: Mapping[Scenario, frozenset[Sensor]] = MappingProxyType(
    {
        Scenario.FULL: frozenset({Sensor.RGIR, Sensor.NDSM}),
        Scenario.MISSING_NDSM: frozenset({Sensor.RGIR}),
        Scenario.MISSING_RGIR: frozenset({Sensor.NDSM}),
    }
)


def scenario_for(alive: Iterable[Sensor]) -> Scenario | None:
    """The scenario that uses exactly the sensors in ``alive``; None when none is alive."""
    alive = frozenset(alive)
    return next((scenario for scenario, read in _SENSORS_OF.items() if read == alive), None)


def scenarios_within(sensors: Iterable[Sensor]) -> tuple[Scenario, ...]:
    """Every scenario that can occur while at most ``sensors`` are alive, fullest first."""
    sensors = frozenset(sensors)
    return tuple(scenario for scenario, read in _SENSORS_OF.items() if read <= sensors)


def parse_sensors(text: str) -> frozenset[Sensor]:
    """``"rgir"``, ``"ndsm"`` or ``"rgir,ndsm"`` as a set.

    Raises:
        UsageError: the list is empty or names something that is not a sensor.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - set(Sensor))
    if unknown or not names:
        raise UsageError(
            f"`sensors` takes a comma-separated list of {', '.join(Sensor)}; received {text!r}: "
            "write for example rgir or rgir,ndsm"
        )
    return frozenset(Sensor(name) for name in names)
