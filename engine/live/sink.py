"""Where the tiles of live frames end: one folder of maps per frame, published whole, and a line for each.

::

    OUTPUT/<stamp>/classes.tif, confidence.tif, provenance.tif    one rename once all three are whole
    OUTPUT/frames.jsonl                                           then a line
    OUTPUT/.unfinished/journal.json                               then the state to go on from

A flight that was killed goes on behind the last frame that the journal counts. What was published after it is mapped
again, to the same bytes: the health monitor goes on from where it was before that frame.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.backends.base import Outputs
from engine.contract.bundle import ClassSpec
from engine.contract.errors import writing
from engine.contract.sensors import Scenario, Sensor
from engine.health.monitor import Verdict
from engine.journal import Entry, Journal, Statistics
from engine.live.frame_log import FrameLog, FrameRecord, worst
from engine.live.source import FramePlan
from engine.rasters.cog import MapWriter
from engine.stream import Job, TileReport, pixels_of
from engine.tile_log import TileLog

log = logging.getLogger(__name__)

MAKE_ROOM = "free space or check permissions, then repeat with --resume"


@dataclass(kw_only=True)
class _FrameTally:
    """What is known of the frame under way."""

    writer: MapWriter | None = None
    inferences: Counter[Scenario] = field(default_factory=Counter)
    pixels: Counter[str] = field(default_factory=Counter)
    verdicts: dict[Sensor, Verdict] = field(default_factory=dict)


@dataclass(kw_only=True)
class LiveSink:
    """Puts the tiles of each frame into its maps, and publishes them with its last tile.

    Args:
        output: where the frames' folders go.
        classes: of the maps.
        frames: the frames under way, entered by the source.
        journal, key: what a resumed flight goes on from, and what it must be the same in.
        tiles, records: the logs; ``tiles`` and ``statistics`` go on across a resume.
        tiles_done: rows of ``tiles`` that belong to frames that are done.
        monitor: the health monitor's state after the last of them.
        frame_done: told of each frame.
    """

    output: Path
    classes: Sequence[ClassSpec]
    frames: dict[str, FramePlan]
    journal: Journal
    key: Mapping[str, Any]
    tiles: TileLog
    records: FrameLog
    statistics: Statistics
    tiles_done: int
    monitor: Mapping[str, Any] | None
    frame_done: Callable[[FrameRecord], None] = lambda _: None
    _tally: _FrameTally = field(default_factory=_FrameTally)

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Compose a tile; with the frame's last one publish its maps."""
        plan = self.frames[job.frame]
        self.monitor = job.monitor or self.monitor
        self.statistics.add_tile(job)
        self._tally.inferences.update(job.scenarios)
        self._tally.verdicts = worst(self._tally.verdicts, job.verdicts)
        if plan.mosaic is None:
            return
        if self._tally.writer is None:
            assert plan.grid is not None
            self._tally.writer = MapWriter.create(self._spools, plan.grid, self.classes, resume=False)
        for block in plan.mosaic.add(job.tile, job.provenance, outputs):
            window = block.window
            self._tally.writer.write(window.row, window.col, block.classes, block.confidence, block.provenance)
            self.statistics.add_block(block)
            self._tally.pixels.update(
                {source.name.lower(): pixels for source, pixels in pixels_of(block.provenance).items()}
            )
        if plan.mosaic.tiles_done == plan.tiles:
            self._publish(job.frame, self._tally.writer)

    def written(self, report: TileReport) -> None:
        """Log the tile just added, and its frame if that is done."""
        self.tiles.append(report)
        plan = self.frames[report.frame]
        if report.tile.index + 1 < plan.tiles:
            return
        tally, self._tally = self._tally, _FrameTally()
        main = max(Scenario, key=lambda scenario: tally.pixels[scenario.provenance.name.lower()])
        frame = plan.frame
        record = FrameRecord(
            stamp=frame.stamp,
            files={sensor: path.name for sensor, path in frame.files.items()},
            absent=plan.absent,
            verdicts=tally.verdicts,
            scenario=main if tally.inferences else None,
            inferences=dict(tally.inferences),
            provenance_pixels=dict(tally.pixels),
            tiles=plan.tiles,
            mapped=plan.mosaic is not None,
            dropped=report.skipped,
            partner_wait_ms=round((frame.available_at - frame.first_at) * 1e3, 3),
            latency_ms=round(report.latency_s * 1e3, 3),
        )
        self.records.append(record)
        self.tiles_done += plan.tiles
        self.checkpoint()
        _tell(record)
        self.frame_done(record)
        del self.frames[report.frame]

    def checkpoint(self) -> None:
        """Write down the state that a resumed flight goes on from: that after the last frame done."""
        self.tiles.flush()
        entry = Entry(key=self.key, tiles_done=self.tiles_done, statistics=self.statistics, monitor=self.monitor)
        with writing(self.journal.folder, MAKE_ROOM):
            self.journal.write(entry.encode())

    def close(self) -> None:
        """Leave the frame under way as it is; a resumed flight begins it anew."""
        if self._tally.writer is not None:
            self._tally.writer.close()

    @property
    def _spools(self) -> Path:
        return self.journal.folder / "frame"

    def _publish(self, stamp: str, writer: MapWriter) -> None:
        whole, place = self._spools / "maps", self.output / stamp
        writer.publish(whole)
        with writing(place, MAKE_ROOM):
            if place.exists():  # published before a kill, and not counted
                shutil.rmtree(place)
            whole.rename(place)
            shutil.rmtree(self._spools)


def _tell(record: FrameRecord) -> None:
    made_by = "dropped" if record.dropped else record.scenario or "nothing could be read"
    log.info(
        "frame %s: %s, %.0f ms",
        record.stamp,
        made_by,
        record.latency_ms,
        extra={
            "event": "frame",
            "frame": record.stamp,
            "scenario": record.scenario,
            "mapped": record.mapped,
            "dropped": record.dropped,
            "tiles": record.tiles,
            "latency_ms": record.latency_ms,
        },
    )
