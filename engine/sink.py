"""Where inferred tiles end: maps, preview, statistics and, every few seconds, the journal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.backends.base import Outputs
from engine.cog import MapWriter
from engine.contract.sensors import Scenario
from engine.journal import Entry, Journal, Statistics
from engine.mosaic import Mosaic
from engine.preview import Preview
from engine.stream import Job

CHECKPOINT_S = 5.0
"""Longest time between two journal entries: what a crash can cost."""


@dataclass(kw_only=True)
class MapSink:
    """Puts inferred tiles into the maps, the preview, the statistics and, every few seconds, the journal."""

    mosaic: Mosaic
    writer: MapWriter
    preview: Preview
    journal: Journal
    key: Mapping[str, Any]
    statistics: Statistics
    counted: int
    """Tiles below this index were counted before a resume."""
    _entry: bytes = b""
    _saved_at: float = field(default_factory=time.monotonic)

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Compose a tile and write what is finished."""
        self.preview.add_job(job)
        if job.tile.index >= self.counted:
            self.statistics.add_tile(job)
        for block in self.mosaic.add(job.tile, job.provenance, outputs):
            self.writer.write(block.window.row, block.window.col, block.classes, block.confidence, block.provenance)
            self.preview.add_block(block)
            self.statistics.add_block(block)
        if self.mosaic.tiles_done == job.tile.index + 1:
            self.remember()
            if time.monotonic() - self._saved_at > CHECKPOINT_S:
                self.checkpoint()

    def remember(self) -> None:
        """Take down a state from which a resumed run can go on."""
        self._entry = Entry(key=self.key, tiles_done=self.mosaic.tiles_done, statistics=self.statistics).encode()

    def checkpoint(self) -> None:
        """Flush the maps, then write the journal."""
        self.writer.flush()
        self.journal.write(self._entry)
        self._saved_at = time.monotonic()
