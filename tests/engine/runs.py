"""Runs as tests ask for them, and what they tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from engine.observer import Observer
from engine.plan import Plan
from engine.record import RunRecord
from engine.request import LandingFolder, RasterFiles, RunRequest
from engine.runner import run


class Watcher(Observer):
    """Counts tiles, and can stop the run as Ctrl-C does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.tiles, self.stop_after = 0, stop_after

    def started(self, plan: Plan, backend: object, *, first_tile: int) -> None:
        self.plan, self.first_tile = plan, first_tile

    def tile_done(self, report: object) -> None:
        self.tiles += 1
        if self.tiles == self.stop_after:
            raise KeyboardInterrupt


def request_for(bundle: Bundle | Path, paths: Mapping[Sensor, Path], output: Path, **options: Any) -> RunRequest:
    """A run over rasters, in float32 unless an option says otherwise."""
    return _request(RasterFiles(paths=paths), bundle, output, {"precision": "fp32", **options})


def live_request(bundle: Bundle | Path, folder: Path, output: Path, **options: Any) -> RunRequest:
    """A watched run over a landing folder, in float32 unless an option says otherwise."""
    source = LandingFolder(folder=folder, **_taken(LandingFolder, options))
    return _request(source, bundle, output, {"watch": True, "precision": "fp32", **options})


def run_told(request: RunRequest, observer: Observer | None = None) -> dict[str, Any]:
    """Run; what ``run.json`` says, which must read as it was written."""
    record = run(request, observer)
    assert RunRecord.read(request.output / "run.json") == record
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    return told


def _request(source: RasterFiles | LandingFolder, bundle: Bundle | Path, output: Path, options: Any) -> RunRequest:
    if "backend" in options:
        options["name"] = options.pop("backend")
    backend = BackendOptions(**_taken(BackendOptions, options))
    root = bundle.root if isinstance(bundle, Bundle) else bundle
    return RunRequest(source=source, bundle=root, output=output, backend=backend, **options)


def _taken(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are fields of ``kind``, taken out of them."""
    return {each.name: options.pop(each.name) for each in fields(kind) if each.name in options}
