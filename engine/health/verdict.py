"""The words in which the health of a sensor is told: faults, findings, states, verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # the reader of rasters may import this file
    from engine.rasters.sources import Observation


class Fault(StrEnum):
    """Why a sensor is not alive. The value is what logs and tables say."""

    NO_DATA = "no_data"
    """Not a single valid pixel."""
    HOLES = "holes"
    """Pixels without data, scattered over the tile."""
    CONSTANT = "constant"
    """One value everywhere."""
    FROZEN = "frozen"
    """The same bytes as the tile before."""
    SATURATED = "saturated"
    """Too many values at the upper end of the range."""
    DARK = "dark"
    """Hardly any light."""
    STUCK_COLUMNS = "stuck_columns"
    """Columns, or rows, that show one value from end to end."""
    OUT_OF_RANGE = "out_of_range"
    """Heights that do not exist."""
    NOISE = "noise"
    """Noise far above the sensor's own."""
    BANDS = "bands"
    """Bands that cannot be near-infrared, red and green: in another order, copied, inverted, dead, damaged."""
    BLIND = "blind"
    """An image of nothing: fog, a lens cap, noise."""
    GROUND = "ground"
    """Heights that do not stand on the ground: a surface model, a tilt, an offset."""
    UNITS = "units"
    """Heights in another unit than metres."""
    HELD = "held"
    """The last tile again, with noise on it."""
    MISPLACED = "misplaced"
    """Heights and image show different places."""
    BLURRED = "blurred"
    """Everything is smeared: out of focus, moved while exposed, interpolated between few points."""
    LATE = "late"
    """Nothing arrived before the deadline."""
    READ_ERROR = "read_error"
    """The tile cannot be read."""


class State(StrEnum):
    """What a sensor is worth in a tile."""

    ALIVE = "alive"
    DEGRADED = "degraded"
    """Suspicious, or recovering with nothing else to use: used."""
    DEAD = "dead"
    """Not used."""


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A sensor that delivered nothing for a tile: it came late or could not be read.

    Raises:
        ValueError: ``fault`` is neither LATE nor READ_ERROR.
    """

    fault: Fault
    detail: str

    def __post_init__(self) -> None:
        if self.fault not in (Fault.LATE, Fault.READ_ERROR):
            raise ValueError(f"a sensor is absent because of {Fault.LATE} or {Fault.READ_ERROR}, received {self.fault}")


Sighting: TypeAlias = "Observation | Absent"
"""What there is of one sensor in one tile."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a sensor is worth in one tile, and why."""

    state: State
    fault: Fault | None = None
    """None while ALIVE."""
    detail: str = ""
    """Numbers and limits, for people."""
    recovering: bool = False
    """This tile shows no fault, but the sensor had one, and not enough tiles have been good since."""

    @property
    def usable(self) -> bool:
        """The sensor may be used in this tile."""
        return self.state is not State.DEAD


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault of one tile."""

    fault: Fault
    hard: bool
    detail: str
    """What is seen, with numbers and limits."""
    mend: str
    """What to do about it (:mod:`engine.health.mends`)."""
    doubt: bool = False
    """What is seen is hardly plausible, but may be: an audit decides where there can be one."""
    hint: bool = False
    """A doubt that means nothing where no audit can be had."""
    size: float = 0.0
    """How bad it is, in some unit: whoever was acquitted is suspected again if it gets worse."""

    @property
    def reason(self) -> str:
        """What is seen, and what to do about it."""
        return f"{self.detail}: {self.mend}"
