"""What a run says while it runs: a progress bar for people, or one JSON object per line for programs."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Self

import msgspec
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine.backends.base import BackendInfo
from engine.frame_log import FrameRecord
from engine.job import TileReport
from engine.observer import Observer
from engine.plan import Plan
from engine.record import RunRecord

PROGRESS_S = 0.5
"""Shortest time between two lines of progress."""


def emit(**event: Any) -> None:
    """One event as a line of JSON on standard output."""
    print(json.dumps(event), flush=True)


class Console(Observer):
    """A progress bar with rate, engine and time left, and a line at the end; a context manager.

    Of a landing folder nobody knows how much will come: each frame has a line in the log instead of the bar.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._logging = logging_redirect_tqdm()
        self._mpx_per_tile = 0.0
        self._began, self._tiles = 0.0, 0
        self._output = ""

    def __enter__(self) -> Self:
        """Log lines are written above the bar from here on."""
        self._logging.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
        self._logging.__exit__(*error)

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """Open the bar."""
        self._output = str(plan.request.output)
        described = plan.describe()
        grid, tiles = described.grid, described.tiling.tiles
        if grid is None or tiles is None:
            print(f"{backend}; waiting for frames, end with Ctrl-C or SIGTERM", file=sys.stderr)
            return
        self._mpx_per_tile = grid.width * grid.height / 1e6 / tiles
        print(
            f"{grid.width} x {grid.height} px in {tiles} tiles of {described.tiling.tile_px} px, "
            f"halo {described.tiling.halo_px} px; {backend}",
            file=sys.stderr,
        )
        self._bar = tqdm(total=tiles, initial=first_tile, unit="tile", file=sys.stderr, mininterval=0.2)
        self._began = time.perf_counter()

    def tile_done(self, report: TileReport) -> None:
        """Advance."""
        if self._bar is None:
            return
        self._tiles += 1
        rate = self._tiles * self._mpx_per_tile / (time.perf_counter() - self._began)
        engine = "+".join(report.scenarios) or "no data"
        self._bar.set_postfix_str(f"{rate:.1f} Mpx/s, {engine}", refresh=False)
        self._bar.update()

    def publishing(self) -> None:
        """Close the bar; writing takes a moment."""
        if self._bar is not None:
            self._bar.close()
            print("writing Cloud-Optimised GeoTIFFs", file=sys.stderr)

    def finished(self, record: RunRecord) -> None:
        """Where the results are, and what did not go as it should."""
        if record.live is not None:
            frames, arrivals = record.frames, vars(record.arrivals)
            odd = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in arrivals.items() if count)
            print(
                f"{frames.mapped} of {frames.done} frames mapped ({odd or 'all in order'}), ended by "
                f"{record.ended}: {self._output}/STAMP/, frames.jsonl, tiles.csv, run.json",
                file=sys.stderr,
            )
            return
        speed = record.performance
        print(
            f"done in {speed.stream_s + speed.publish_s:.1f} s ({speed.mpx_per_s:.2f} Mpx/s, "
            f"peak memory {speed.peak_rss_mib:.0f} MiB): {self._output}/quicklook.png, classes.tif, "
            "confidence.tif, provenance.tif, tiles.csv, run.json",
            file=sys.stderr,
        )


class JsonLines(Observer):
    """One event per line.

    ``started``; ``progress`` (at most two a second) and ``publishing`` where it is known how many tiles there are,
    ``frame`` (a line of frames.jsonl) where it is not; ``finished``, with the whole of run.json.
    """

    def __init__(self) -> None:
        self._done, self._told = 0, 0.0
        self._total: int | None = None
        self._output = ""

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """Everything known before the first tile."""
        self._output = str(plan.request.output)
        self._total, self._done = plan.tiles, first_tile
        described = msgspec.to_builtins(plan.describe())
        emit(event="started", backend=backend.name, device=backend.device, first_tile=first_tile, **described)

    def tile_done(self, report: TileReport) -> None:
        """At most two a second, and the last."""
        self._done += 1
        now = time.monotonic()
        if self._total is not None and (now - self._told >= PROGRESS_S or self._done == self._total):
            self._told = now
            emit(event="progress", tiles_done=self._done, tiles=self._total, scenarios=list(report.scenarios))

    def frame_done(self, record: FrameRecord) -> None:
        """One more frame."""
        if self._total is None:
            emit(event="frame", **msgspec.to_builtins(record))

    def publishing(self) -> None:
        """All tiles are done."""
        if self._total is not None:
            emit(event="publishing")

    def finished(self, record: RunRecord) -> None:
        """The whole of run.json."""
        emit(event="finished", output=self._output, run=msgspec.to_builtins(record))
