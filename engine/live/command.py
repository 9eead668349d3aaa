"""What ``python -m engine.run --live FOLDER`` adds to the command: its options, and what it says while it flies."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine.backends.base import BackendInfo
from engine.console import Quiet, emit
from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor, parse_sensors
from engine.live.frame_log import FrameRecord
from engine.live.frame_name import Pattern
from engine.live.request import PATTERN, LiveRequest
from engine.options import settings_of
from engine.request import Plan

BY_SIDECAR = "sidecar"
"""The word for ``--pattern`` that goes by sidecars alone."""
PARTNER_WAIT_MS = 500.0


def add_live_options(parser: argparse.ArgumentParser) -> None:
    """The options that make sense with a live folder only."""
    live = parser.add_argument_group("live folder")
    live.add_argument("--live", type=Path, metavar="DIR", help="map the frames that land here, each into a folder")
    live.add_argument(
        "--pattern",
        metavar="NAME",
        help=f"of frames' files (default: {PATTERN.text}); {BY_SIDECAR}: only those that a JSON file beside them names",
    )
    live.add_argument(
        "--partner-wait",
        type=float,
        metavar="MS",
        help=f"a frame waits so long for its second sensor (default: {PARTNER_WAIT_MS:g})",
    )
    live.add_argument(
        "--idle-exit", type=float, metavar="S", help="end when nothing has landed for so long (default: at SIGTERM)"
    )


def live_request_of(options: argparse.Namespace) -> LiveRequest:
    """The options as a request; ``options.live`` is set.

    Raises:
        UsageError: they contradict each other.
    """
    for option in ("rgir", "ndsm", "rate"):
        if getattr(options, option) is not None:
            raise UsageError(f"--live reads what lands in its folder, at its own pace: leave --{option} away")
    if options.blend != "none":
        raise UsageError(f"--live maps frames with --blend none, received {options.blend}")
    watch = options.sensors in (None, "auto")
    return LiveRequest(
        **settings_of(options),
        folder=options.live,
        output=options.output or Path("segmented-live"),
        sensors=frozenset(Sensor) if watch else parse_sensors(options.sensors),
        pattern=_pattern(options.pattern),
        partner_wait_ms=PARTNER_WAIT_MS if options.partner_wait is None else options.partner_wait,
        idle_exit_s=options.idle_exit,
        watch=watch,
        deadline_ms=options.deadline,
    )


def _pattern(text: str | None) -> Pattern | None:
    if text is None:
        return PATTERN
    return None if text == BY_SIDECAR else Pattern(text=text)


def refuse_live_options(options: argparse.Namespace) -> None:
    """Without ``--live``.

    Raises:
        UsageError: an option is given that needs it.
    """
    for option in ("pattern", "partner_wait", "idle_exit"):
        if getattr(options, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} needs --live DIR, the folder where frames land")


class FlightConsole(Quiet):
    """What runs, and a line at the end; in between each frame has a line in the log."""

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """Frames may come."""
        print(f"{backend}; waiting for frames, end with Ctrl-C or SIGTERM", file=sys.stderr)

    def frame_done(self, record: FrameRecord) -> None:
        """The log has told."""

    def flown(self, request: LiveRequest, summary: dict[str, Any]) -> None:
        """Where the results are."""
        frames, arrivals = summary["frames"], summary["arrivals"]
        odd = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in arrivals.items() if count)
        print(
            f"{frames['mapped']} of {frames['done']} frames mapped ({odd or 'all in order'}), ended by "
            f"{summary['ended']}: {request.output}/STAMP/, frames.jsonl, tiles.csv, run.json",
            file=sys.stderr,
        )


class FlightQuiet(FlightConsole):
    """Says nothing."""

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """Frames may come."""

    def flown(self, request: LiveRequest, summary: dict[str, Any]) -> None:
        """Results are in place."""


class FlightJsonLines(FlightConsole):
    """One event per line: ``started``, ``frame`` (a line of frames.jsonl), ``finished``."""

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """Frames may come."""
        emit(event="started", backend=backend.name, device=backend.device, first_tile=first_tile)

    def frame_done(self, record: FrameRecord) -> None:
        """One more frame."""
        emit(event="frame", **msgspec.to_builtins(record))

    def flown(self, request: LiveRequest, summary: dict[str, Any]) -> None:
        """The whole of run.json."""
        emit(event="finished", output=str(request.output), run=summary)
