"""What a flight over a live folder is asked for, and the same once it has been checked. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.contract.bundle import Bundle
from engine.contract.errors import OutputError, UsageError
from engine.contract.health import HealthLimits, parse_limits
from engine.contract.sensors import Scenario, Sensor, scenarios_within
from engine.grid import Axis
from engine.journal import Journal
from engine.live import frame_log
from engine.live.folder import LiveFolder
from engine.live.frame_name import Pattern
from engine.request import Settings

PATTERN = Pattern(text="{sensor}_{stamp}.tif")


@dataclass(frozen=True, kw_only=True)
class LiveRequest(Settings):
    """Everything a flight needs to know; ``resume`` begins where there is nothing to go on behind.

    Raises:
        UsageError: a number is not positive, or two options contradict each other.
    """

    folder: Path
    """Where frames land."""
    sensors: frozenset[Sensor] = frozenset(Sensor)
    """Those expected to deliver."""
    pattern: Pattern | None = PATTERN
    """Of file names; None goes by sidecars alone."""
    partner_wait_ms: float = 500.0
    """How long a frame waits for a sensor after the first has delivered."""
    idle_exit_s: float | None = None
    """The flight is over when nothing has landed for so long; None waits for a signal."""
    watch: bool = True

    def __post_init__(self) -> None:
        if not self.sensors:
            raise UsageError("at least one sensor must deliver, received none: pass --sensors rgir,ndsm")
        self.check(self.sensors, {"--partner-wait": self.partner_wait_ms, "--idle-exit": self.idle_exit_s})


@dataclass(frozen=True, kw_only=True)
class LivePlan:
    """A checked request: bundle verified, folder there."""

    request: LiveRequest
    bundle: Bundle
    halo_px: int
    scenarios: tuple[Scenario, ...]
    limits: Mapping[Sensor, HealthLimits] | None
    """None where the sensors are trusted."""

    def describe(self) -> dict[str, Any]:
        """For ``--dry-run`` and ``run.json``; JSON-serialisable."""
        request, manifest = self.request, self.bundle.manifest
        return {
            "bundle": {"name": manifest.name, "path": str(self.bundle.root), "sha256": self.bundle.digest},
            "live": {
                "folder": str(request.folder),
                "sensors": [sensor.value for sensor in Sensor if sensor in request.sensors],
                "pattern": request.pattern.text if request.pattern is not None else "sidecar",
                "partner_wait_ms": request.partner_wait_ms,
                "idle_exit_s": request.idle_exit_s,
            },
            "tiling": {"tile_px": manifest.tile_px, "halo_px": self.halo_px, "blend": "none"},
            "scenarios": [scenario.value for scenario in self.scenarios],
            "health": {"watched": self.limits is not None, "limits": msgspec.to_builtins(self.limits or {})},
        }


def plan_flight(request: LiveRequest) -> LivePlan:
    """Check the request against the bundle, the live folder and the output folder. Writes nothing.

    Raises:
        EngineError: whatever is wrong with it, by the tree in :mod:`engine.contract.errors`.
    """
    _check_output(request)
    bundle = Bundle.load(request.bundle)
    manifest = bundle.manifest
    halo_px = manifest.halo_px if request.halo_px is None else request.halo_px
    Axis(length=manifest.tile_px, tile_px=manifest.tile_px, halo_px=halo_px)  # refuses a halo that leaves no core
    limits = None
    if request.watch:
        adjusted = parse_limits(list(request.health), manifest.health)
        limits = {sensor: adjusted[sensor] for sensor in Sensor if sensor in request.sensors}
    plan = LivePlan(
        request=request, bundle=bundle, halo_px=halo_px, scenarios=scenarios_within(request.sensors), limits=limits
    )
    open_folder(plan, {})
    return plan


def _check_output(request: LiveRequest) -> None:
    output = request.output
    if output.exists() and not output.is_dir():
        raise OutputError(f"--output must be a folder; {output} is a file: pass another --output")
    if (Journal(output).exists or (output / frame_log.NAME).exists()) and not (request.overwrite or request.resume):
        raise OutputError(
            f"{output} holds the maps of a flight: pass --resume to go on, --overwrite to replace them, or another "
            "--output"
        )


def open_folder(plan: LivePlan, done: Mapping[str, frozenset[Sensor]]) -> LiveFolder:
    """The live folder, without the frames that are ``done``.

    Raises:
        InputError: there is no such folder.
    """
    request = plan.request
    return LiveFolder(
        request.folder,
        sensors=request.sensors,
        pattern=request.pattern,
        partner_wait_s=request.partner_wait_ms / 1e3,
        done=done,
    )
