"""Where inferred tiles end: maps, preview, tile log, statistics and, every few seconds, the journal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.backends.base import Outputs
from engine.contract.sensors import Scenario
from engine.journal import Entry, Journal, Statistics
from engine.mosaic import Mosaic
from engine.preview import Preview
from engine.rasters.cog import MapWriter
from engine.stream import Job, TileReport
from engine.tile_log import TileLog

CHECKPOINT_S = 5.0
"""Longest time between two journal entries: what a crash can cost."""


@dataclass(kw_only=True)
class MapSink:
    """Puts inferred tiles into the maps, the preview, the tile log, the statistics and, at intervals, the journal."""

    mosaic: Mosaic
    writer: MapWriter
    preview: Preview
    tiles: TileLog
    journal: Journal
    key: Mapping[str, Any]
    statistics: Statistics
    monitor: Mapping[str, Any] | None
    """The health monitor's state after the last tile."""
    counted: int
    """Tiles below this index were counted before a resume."""
    _entry: bytes = b""
    _saved_at: float = field(default_factory=time.monotonic)

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Compose a tile and write what is finished."""
        if time.monotonic() - self._saved_at > CHECKPOINT_S:
            self.checkpoint()  # of the tiles before: this one's row is not in the log yet
        self.preview.add_job(job)
        if job.tile.index >= self.counted:
            self.statistics.add_tile(job)
            self.monitor = job.monitor
        for block in self.mosaic.add(job.tile, job.provenance, outputs):
            self.writer.write(block.window.row, block.window.col, block.classes, block.confidence, block.provenance)
            self.preview.add_block(block)
            self.statistics.add_block(block)

    def written(self, report: TileReport) -> None:
        """Log the tile just added."""
        if report.tile.index >= self.counted:
            self.tiles.append(report)
        if self.mosaic.tiles_done == report.tile.index + 1:
            self.remember()

    def remember(self) -> None:
        """Take down a state from which a resumed run can go on."""
        entry = Entry(key=self.key, tiles_done=self.mosaic.tiles_done, statistics=self.statistics, monitor=self.monitor)
        self._entry = entry.encode()

    def checkpoint(self) -> None:
        """Flush the maps and the tile log, then write the journal."""
        self.writer.flush()
        self.tiles.flush()
        self.journal.write(self._entry)
        self._saved_at = time.monotonic()
