"""Faults on purpose: make a sensor fail in chosen tiles.

::

    ndsm:dead@120-180,rgir:noise@200,ndsm:frozen@300-        tiles 120 to 180; tile 200; tile 300 to the end
    ndsm:offset=5@3-,rgir:bands=321@0-                       heights 5 m too high; red, green and NIR in another order

Failures (:data:`FAILURES`) are moderate: they spoil a map without being absurd. Degradations
(:mod:`engine.health.degradations`) come in any strength. The same seed, tile and sensor give the same bytes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor
from engine.health.degradations import DEGRADATIONS
from engine.health.degraded import CHANGES, OVER_TILES
from engine.health.failures import FAILURE, with_values
from engine.health.verdict import Absent, Fault, Sighting
from engine.rasters.sources import Observation


class Kind(StrEnum):
    """What is done to a sensor. The value is the word in ``--inject``."""

    DEAD = "dead"
    """No pixel has data."""
    HOLES = "holes"
    """One pixel in ten, anywhere, loses its data."""
    CONSTANT = "constant"
    """Grey everywhere, or one height that is not the ground's."""
    FLAT = "flat"
    """nDSM: zero everywhere, which is what a lake looks like too."""
    FROZEN = "frozen"
    """The tile before the first one, again and again."""
    SATURATED = "saturated"
    """RGIR: exposed far too long."""
    DARK = "dark"
    """RGIR: a thirtieth of the light, and read noise."""
    STUCK = "stuck"
    """One column in twenty shows one value, the same in every tile."""
    RANGE = "range"
    """nDSM: blocks on an eighth of the tile hold the largest number of a 16-bit sensor in decimetres."""
    NOISE = "noise"
    """White noise of 40 DN or 2.5 m."""
    LATE = "late"
    """Nothing arrives in time."""
    ERROR = "error"
    """The tile cannot be read."""
    # degradations
    OFFSET = "offset"
    TILT = "tilt"
    TERRAIN = "terrain"
    SCALE = "scale"
    SHIFT = "shift"
    ELSEWHERE = "elsewhere"
    HELD = "held"
    BLUR = "blur"
    SPIKES = "spikes"
    BANDS = "bands"
    COPIED = "copied"
    INVERTED = "inverted"
    BIT = "bit"
    FOG = "fog"
    GAIN = "gain"
    VIGNETTE = "vignette"
    SMEARED = "smeared"
    TORN = "torn"
    PARTED = "parted"
    GAMMA = "gamma"
    QUANTISED = "quantised"
    WRAPPED = "wrapped"
    CLIPPED = "clipped"
    STRIPES = "stripes"
    GRAIN = "grain"
    LUMPS = "lumps"
    TINTED = "tinted"
    BLOCKS = "blocks"
    NEGATIVE = "negative"
    GAPS = "gaps"
    CHECKERED = "checkered"
    WIDENING = "widening"
    LAGGED = "lagged"
    CREEPING = "creeping"
    FLICKERING = "flickering"
    MIXED = "mixed"


FAILURES = tuple(kind for kind in Kind if kind.value not in DEGRADATIONS)
"""A sensor that is plainly broken."""
SOFT = frozenset({Kind.HOLES, Kind.FLAT})
"""Failures that a single tile does not prove."""
REPEATING = frozenset({Kind.FROZEN, Kind.HELD})
"""Kinds that show an earlier tile."""
LATER = REPEATING | {Kind.LAGGED}
"""Kinds that need a tile before."""
ONE_SENSOR_ONLY = {
    Kind.FLAT: Sensor.NDSM,
    Kind.RANGE: Sensor.NDSM,
    Kind.SATURATED: Sensor.RGIR,
    Kind.DARK: Sensor.RGIR,
}
ORDERS = tuple("".join(order) for order in itertools.permutations("123") if order != tuple("123"))
WHOLE = {
    Kind.COPIED: (1, 2, 3),
    Kind.INVERTED: (0, 1, 2, 3),
    Kind.BIT: tuple(range(8)),
    Kind.ELSEWHERE: tuple(range(1, 8)),
}
"""Kinds whose strength is one of a few whole numbers."""
UNSIGNED = frozenset(
    {
        Kind.GAPS,
        Kind.WIDENING,
        Kind.LAGGED,
        Kind.SHIFT,
        Kind.HELD,
        Kind.BLUR,
        Kind.SPIKES,
        Kind.FOG,
        Kind.GAIN,
        Kind.VIGNETTE,
        Kind.TERRAIN,
    }
)


def kinds_of(sensor: Sensor) -> tuple[Kind, ...]:
    """How that sensor can fail."""
    return tuple(kind for kind in FAILURES if ONE_SENSOR_ONLY.get(kind, sensor) is sensor)


def degradations_of(sensor: Sensor) -> tuple[Kind, ...]:
    """What else can befall it."""
    return tuple(kind for kind in Kind if sensor in strengths_of(kind))


def strengths_of(kind: Kind) -> Mapping[Sensor, tuple[float, ...]]:
    """Strengths to try, for each sensor that a degradation can befall; empty for a failure."""
    return {} if kind in FAILURES else DEGRADATIONS[kind].strengths


@dataclass(frozen=True, kw_only=True)
class Injection:
    """One sensor failing in one way in the tiles ``first`` to ``last``, both included; None: to the end.

    Raises:
        UsageError: the range is empty, the kind is not one of that sensor's, or there is no tile to freeze.
    """

    sensor: Sensor
    kind: Kind
    first: int
    last: int | None
    strength: float | None = None
    """Of a degradation; None is its default."""

    def __post_init__(self) -> None:
        if self.first < 0 or (self.last is not None and self.last < self.first):
            raise UsageError(f"`inject` {self}: tiles run from a first one to a last one that is not before it")
        known = kinds_of(self.sensor) + degradations_of(self.sensor)
        if self.kind not in known:
            raise UsageError(f"`inject` {self}: {self.sensor} can be {', '.join(known)}")
        if self.kind in LATER and self.first == 0:
            raise UsageError(
                f"`inject` {self}: a {self.kind} sensor repeats the tile before, so begin at tile 1 or later"
            )
        if self.kind in FAILURES and self.strength is not None:
            raise UsageError(f"`inject` {self}: {self.kind} has no strength: leave ={self.strength:g} out")
        if self.kind is Kind.BANDS and f"{self.amount:g}" not in ORDERS:
            raise UsageError(f"`inject` {self}: an order of bands is one of {', '.join(ORDERS)}")
        if self.kind in WHOLE and self.amount not in WHOLE[self.kind]:
            raise UsageError(f"`inject` {self}: {self.kind} is one of {', '.join(map(str, WHOLE[self.kind]))}")
        if not math.isfinite(self.amount) or (self.kind in UNSIGNED and self.amount < 0):
            raise UsageError(
                f"`inject` {self}: {self.kind} takes a number of at least 0, {DEGRADATIONS[self.kind].means}"
            )

    @property
    def amount(self) -> float:
        """The strength, or that of the kind; 0 for a failure."""
        if self.kind in FAILURES:
            return 0.0
        return DEGRADATIONS[self.kind].strengths[self.sensor][-1] if self.strength is None else self.strength

    def __str__(self) -> str:
        """As it is written in ``--inject``."""
        tiles = f"{self.first}" if self.last == self.first else f"{self.first}-{'' if self.last is None else self.last}"
        strength = "" if self.strength is None else f"={self.strength:g}"
        return f"{self.sensor}:{self.kind}{strength}@{tiles}"

    def __contains__(self, tile_index: int) -> bool:
        return self.first <= tile_index and (self.last is None or tile_index <= self.last)

    @property
    def expected_hard(self) -> bool:
        """The sensor has to be DEAD in the tile where it starts to fail."""
        return self.kind in FAILURES and self.kind not in SOFT


_ITEM = re.compile(
    r"(?P<sensor>\w+):(?P<kind>\w+)(=(?P<strength>-?\d+(\.\d+)?))?@(?P<first>\d+)(?P<to>-(?P<last>\d+)?)?"
)


def parse_faults(text: str) -> tuple[Injection, ...]:
    """``"ndsm:dead@120-180,rgir:noise@200,ndsm:frozen@300-"`` as injections.

    Raises:
        UsageError: the text does not follow the grammar, or asks for what a sensor cannot do.
    """
    found = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None or match["sensor"] not in list(Sensor) or match["kind"] not in list(Kind):
            raise UsageError(
                f"`inject` takes SENSOR:KIND@FIRST, @FIRST-LAST or @FIRST- joined by commas, a degradation also as "
                f"KIND=STRENGTH, with the sensors {', '.join(Sensor)}, the kinds {', '.join(Kind)} and tiles counted "
                f"from 0; received {item.strip()!r}"
            )
        first = int(match["first"])
        last = int(match["last"]) if match["last"] else None if match["to"] else first
        strength = None if match["strength"] is None else float(match["strength"])
        sensor, kind = Sensor(match["sensor"]), Kind(match["kind"])
        found.append(Injection(sensor=sensor, kind=kind, first=first, last=last, strength=strength))
    return tuple(found)


class Injector:
    """Makes sensors fail.

    Args:
        injections: applied in this order where they overlap.
        seed: of everything random.
    """

    def __init__(self, injections: Sequence[Injection], seed: int = 0) -> None:
        self._injections = tuple(injections)
        self._seed = seed
        self._frozen: dict[Injection, Sighting] = {}
        self._before: dict[Sensor, Sighting] = {}

    def apply(self, tile_index: int, seen: Mapping[Sensor, Sighting]) -> dict[Sensor, Sighting]:
        """What the monitor and the pipeline get to see of a tile; ``seen`` itself is left alone.

        Call for every tile, in order: a frozen sensor repeats the tile before it froze.
        """
        delivered = dict(seen)
        for injection in self._injections:
            sighting = delivered.get(injection.sensor)
            if sighting is not None and tile_index in injection:
                delivered[injection.sensor] = self._inject(injection, tile_index, sighting)
        for injection in self._injections:
            if injection.kind in REPEATING and tile_index == injection.first - 1 and injection.sensor in delivered:
                self._frozen[injection] = _copy(delivered[injection.sensor])
            if injection.kind is Kind.LAGGED and injection.sensor in seen:
                self._before[injection.sensor] = _copy(seen[injection.sensor])
        return delivered

    def _inject(self, injection: Injection, tile_index: int, sighting: Sighting) -> Sighting:
        if injection.kind is Kind.LATE:
            return Absent(fault=Fault.LATE, detail=f"injected by {injection}")
        if injection.kind is Kind.ERROR:
            return Absent(fault=Fault.READ_ERROR, detail=f"injected by {injection}")
        if injection.kind is Kind.FROZEN:
            return self._frozen[injection]
        if isinstance(sighting, Absent):  # nothing left to spoil
            return sighting
        sensor = injection.sensor
        key = (self._seed, list(Sensor).index(sensor), list(Kind).index(injection.kind))
        defect, moment = np.random.default_rng(key), np.random.default_rng((*key, tile_index))
        if injection.kind in FAILURES:
            return FAILURE[injection.kind](sensor, sighting, defect, moment)
        source = self._frozen[injection] if injection.kind in REPEATING else sighting
        if isinstance(source, Absent):
            return source
        kind, values = injection.kind, source.values.astype(np.float32)
        if kind in OVER_TILES:
            before = self._before.get(sensor)
            last = values if before is None or isinstance(before, Absent) else before.values.astype(np.float32)
            return with_values(source, OVER_TILES[kind](values, injection.amount, tile_index - injection.first, last))
        return with_values(source, CHANGES[kind](values, injection.amount, defect, moment))


def _copy(sighting: Sighting) -> Sighting:
    """The reader's buffers are used again."""
    if isinstance(sighting, Absent):
        return sighting
    return Observation(values=sighting.values.copy(), valid=sighting.valid.copy())
