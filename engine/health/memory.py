"""What is remembered of one sensor from tile to tile, and how a journal keeps it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.health.novelty import Signature
from engine.health.verdict import Fault

REMEMBERED_TILES = 15
"""Clean tiles whose noise is the measure for the next one's."""


@dataclass(kw_only=True)
class SensorMemory:
    """What is remembered of one sensor from tile to tile."""

    dead: Fault | None = None
    """Why it is held DEAD."""
    suspicious: int = 0
    """Tiles in a row with a soft fault."""
    good: int = 0
    """Good tiles in a row since it was DEAD."""
    checksum: int | None = None
    """Of the last tile with data."""
    noise: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_TILES))
    """Of the last clean tiles."""
    signature: Signature | None = None
    """Of the last tile with data."""
    acquitted: dict[Fault, float] = field(default_factory=dict)
    """What it is not suspected of before the next audit is due, unless it gets worse than this."""
    convicted: bool = False
    """It is DEAD by an audit, with nothing that a cheaper sign sees."""
    place: tuple[int, int] | None = None
    """Row and column of the last tile with data, where they are known."""
    sound: bool = False
    """That tile had nothing that would have made the sensor DEAD: what comes next can be held against it."""

    @property
    def usual_noise(self) -> float | None:
        """The median of the clean tiles'; None before the first one."""
        return statistics.median(self.noise) if self.noise else None

    def snapshot(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "dead": None if self.dead is None else str(self.dead),
            "suspicious": self.suspicious,
            "good": self.good,
            "checksum": self.checksum,
            "noise": list(self.noise),
            "signature": None if self.signature is None else self.signature.text,
            "acquitted": {str(fault): size for fault, size in self.acquitted.items()},
            "convicted": self.convicted,
            "sound": self.sound,
            "place": self.place,
        }

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> SensorMemory:
        """From a :meth:`snapshot`."""
        return cls(
            dead=None if kept["dead"] is None else Fault(kept["dead"]),
            suspicious=kept["suspicious"],
            good=kept["good"],
            checksum=kept["checksum"],
            noise=deque(kept["noise"], maxlen=REMEMBERED_TILES),
            signature=None if kept["signature"] is None else Signature.of_text(kept["signature"]),
            acquitted={Fault(fault): size for fault, size in kept["acquitted"].items()},
            convicted=kept["convicted"],
            sound=kept["sound"],
            place=None if kept["place"] is None else tuple(kept["place"]),
        )
