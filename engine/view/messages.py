"""What a run tells the process that serves its page: one line of JSON each, through a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

import msgspec

from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent
from engine.contract.bundle import ClassSpec
from engine.contract.formats import from_json
from engine.contract.sensors import Scenario, Sensor
from engine.grid import Window
from engine.health.monitor import Verdict
from engine.record import GridUsed, PlanRecord, RasterUsed
from engine.telemetry.status import Phase


class Started(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All checks passed and the backend is warm."""

    plan: PlanRecord
    classes: tuple[ClassSpec, ...]
    backend: BackendInfo
    started_utc: str
    first_tile: int
    rate_hz: float | None
    deadline_ms: float | None


class FrameBegun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The map of a frame begins: from here on the canvas holds it."""

    stamp: str
    grid: GridUsed
    inputs: Mapping[Sensor, RasterUsed]


class TileDone(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """One more tile is in the maps."""

    at_s: float
    """Since the start."""
    frame: str
    tile: int
    target: Window
    painted: tuple[Window, ...] = ()
    """What became visible since the tile before."""
    scenario: Scenario | None = None
    lost: bool = False
    skipped: bool = False
    switched: bool = False
    reason: str = ""
    """Of the switch."""
    verdicts: Mapping[Sensor, Verdict] = {}
    latency_ms: float
    queue_depth: int = 0


class BackendChanged(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something happened to a backend; ``backend`` is what infers now."""

    event: BackendEvent
    backend: BackendInfo


class FrameDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The maps of a frame are in place, or it is known that there are none."""

    stamp: str
    mapped: bool
    dropped: bool
    latency_ms: float


class PhaseBegun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Where the run is now."""

    phase: Phase
    reason: str = ""
    """Why it failed."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The run begins or ceases to wait for the world."""

    waits: bool


Message: TypeAlias = Started | FrameBegun | TileDone | BackendChanged | FrameDone | PhaseBegun | Waiting


def encode(message: Message) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """What was encoded.

    Raises:
        MalformedError: it is not one.
    """
    return from_json(line, cast(type[Message], Message))
