"""What a run says while it runs: a progress bar for people, or one JSON object per line for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine.backends.base import BackendInfo
from engine.request import Plan, Request
from engine.segment import Observer
from engine.stream import TileReport


class Together:
    """Several observers as one, told in this order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """All checks passed."""
        for each in self._observers:
            each.started(plan, backend, first_tile=first_tile)

    def tile_done(self, report: TileReport) -> None:
        """One more tile."""
        for each in self._observers:
            each.tile_done(report)

    def publishing(self) -> None:
        """All tiles are done."""
        for each in self._observers:
            each.publishing()


def emit(**event: Any) -> None:
    """One event as a line of JSON on standard output."""
    print(json.dumps(event), flush=True)


class Quiet:
    """Says nothing; the base of what does."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_error: object) -> None:
        """End the progress display, whatever happened."""

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """All checks passed."""

    def tile_done(self, report: TileReport) -> None:
        """One more tile."""

    def publishing(self) -> None:
        """All tiles are done."""

    def finished(self, request: Request, summary: dict[str, Any]) -> None:
        """Results are in place."""


class Console(Quiet):
    """A progress bar with rate, engine and time left, and a line at the end."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._logging = logging_redirect_tqdm()

    def __enter__(self) -> Console:
        """Log lines are written above the bar from here on."""
        self._logging.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
        self._logging.__exit__(*error)

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """Open the bar."""
        assert plan is not None
        grid = plan.rasters.grid
        tiles = len(plan.mosaic.grid)
        self._mpx_per_tile = grid.width * grid.height / 1e6 / tiles
        print(
            f"{grid.width} x {grid.height} px in {tiles} tiles of {plan.mosaic.grid.tile_px} px, "
            f"halo {plan.halo_px} px; {backend}",
            file=sys.stderr,
        )
        self._bar = tqdm(total=tiles, initial=first_tile, unit="tile", file=sys.stderr, mininterval=0.2)
        self._began, self._tiles = time.perf_counter(), 0

    def tile_done(self, report: TileReport) -> None:
        """Advance."""
        assert self._bar is not None
        self._tiles += 1
        rate = self._tiles * self._mpx_per_tile / (time.perf_counter() - self._began)
        engine = "+".join(report.scenarios) or "no data"
        self._bar.set_postfix_str(f"{rate:.1f} Mpx/s, {engine}", refresh=False)
        self._bar.update()

    def publishing(self) -> None:
        """Close the bar; writing takes a moment."""
        assert self._bar is not None
        self._bar.close()
        print("writing Cloud-Optimised GeoTIFFs", file=sys.stderr)

    def finished(self, request: Request, summary: dict[str, Any]) -> None:
        """Where the results are, and what failed on the way."""
        speed = summary["performance"]
        print(
            f"done in {speed['stream_s'] + speed['publish_s']:.1f} s ({speed['mpx_per_s']:.2f} Mpx/s, "
            f"peak memory {speed['peak_rss_mib']:.0f} MiB): {request.output}/quicklook.png, classes.tif, "
            "confidence.tif, provenance.tif, tiles.csv, run.json",
            file=sys.stderr,
        )


class JsonLines(Quiet):
    """One event per line: ``started``, ``progress`` (at most two a second), ``publishing``, ``finished``, ``error``."""

    def __init__(self) -> None:
        self._done, self._told = 0, 0.0

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """Everything known before the first tile."""
        assert plan is not None
        self._total, self._done = len(plan.mosaic.grid), first_tile
        emit(event="started", backend=backend.name, device=backend.device, first_tile=first_tile, **plan.describe())

    def tile_done(self, report: TileReport) -> None:
        """At most two a second, and the last."""
        self._done += 1
        now = time.monotonic()
        if now - self._told >= 0.5 or self._done == self._total:
            self._told = now
            emit(event="progress", tiles_done=self._done, tiles=self._total, scenarios=list(report.scenarios))

    def publishing(self) -> None:
        """All tiles are done."""
        emit(event="publishing")

    def finished(self, request: Request, summary: dict[str, Any]) -> None:
        """The whole of run.json."""
        emit(event="finished", output=str(request.output), run=summary)
