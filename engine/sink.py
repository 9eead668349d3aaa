"""Where inferred tiles end: the maps of each frame, published whole, and what a resumed run goes on from.

::

    OUTPUT/.unfinished/frame/    maps and preview of the frame under way
    OUTPUT/<stamp>/              classes.tif, confidence.tif, provenance.tif, their styles for QGIS and quicklook.png of
                                 a live frame: one rename once all are whole; those of a raster go into OUTPUT itself
    OUTPUT/frames.jsonl          then a line (live)
    OUTPUT/.unfinished/          tiles.csv, and last journal.json: the state to go on from

A raster run goes on behind the last tile that the journal counts, a live run behind the last frame. What was published
after it is mapped again, to the same bytes: the health monitor goes on from where it was.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.backends.base import Outputs
from engine.contract.atomic import sync
from engine.contract.bundle import ClassSpec
from engine.contract.errors import OutputError, writing
from engine.contract.sensors import Scenario, Sensor
from engine.digested_file import FilePrefix
from engine.frame_log import FrameLog, FrameRecord, read_frame_log, worst
from engine.frames import OpenFrame, name_of
from engine.health.monitor import Verdict
from engine.job import Job, TileReport
from engine.journal import Entry, Journal, PixelCounts, Statistics
from engine.map_block import MapBlock
from engine.observer import Observer
from engine.output import QUICKLOOK_NAME
from engine.ownership import frame_mark, is_marked, mark
from engine.preview import Preview
from engine.rasters.cog import MapWriter
from engine.rasters.georeference import Grid
from engine.rasters.map_kinds import PROBABILITIES
from engine.record import GridUsed, RasterUsed, described
from engine.tile_log import TileLog

log = logging.getLogger(__name__)

CHECKPOINT_S = 5.0
"""Longest time between two journal entries: what a crash can cost."""
MAKE_ROOM = "free space or check permissions, then repeat with resume=True"


@dataclass(frozen=True, kw_only=True)
class _Maps:
    """The maps of the frame under way."""

    writer: MapWriter
    preview: Preview


@dataclass(kw_only=True)
class FrameTally:
    """What is known of a frame under way."""

    began_at: float | None = None
    """When its first tile was available."""
    inferences: Counter[Scenario] = field(default_factory=Counter)
    pixels: PixelCounts = field(default_factory=PixelCounts)
    verdicts: dict[Sensor, Verdict] = field(default_factory=dict)

    def begin(self, job: Job) -> None:
        """Take note of the frame's first tile, which a resumed run may have counted before."""
        if self.began_at is None:
            self.began_at = job.available_at

    def add(self, job: Job) -> None:
        """Count a tile."""
        self.begin(job)
        self.inferences.update(job.scenarios)
        self.verdicts = worst(self.verdicts, job.verdicts)

    def record(self, opened: OpenFrame, last: TileReport) -> FrameRecord:
        """What became of the frame, once its last tile is written."""
        assert self.began_at is not None
        frame = opened.frame
        main = max(Scenario, key=lambda scenario: self.pixels.provenance[scenario.provenance])
        waited_s = (frame.available_at or 0.0) - (frame.first_at or 0.0)
        return FrameRecord(
            stamp=frame.stamp,
            files={sensor: name_of(name) for sensor, name in frame.files.items()},
            absent=opened.absent,
            verdicts=self.verdicts,
            scenario=main if self.inferences else None,
            inferences=dict(self.inferences),
            provenance_pixels=self.pixels.by_provenance if opened.stitcher is not None else {},
            tiles=opened.tiles,
            mapped=opened.stitcher is not None,
            dropped=frame.dropped,
            partner_wait_ms=round(waited_s * 1e3, 3),
            latency_ms=round((last.available_at + last.latency_s - self.began_at) * 1e3, 3),
            rasters={Sensor(sensor): told for sensor, told in opened.inputs.items()} if frame.stamp else {},
        )


@dataclass(kw_only=True)
class FrameSink:
    """Puts the tiles of each frame into its maps, publishes them, and writes down what a resumed run goes on from.

    Args:
        output: where the results go.
        model, classes: what the maps are of.
        probabilities: a map of them is wanted as well.
        live: see :class:`engine.frames.FrameSource`; the maps are published with a frame's last tile. Else
            :meth:`publish` and :meth:`complete` are the caller's to call.
        journal, key: what a resumed run goes on from, and what it must be the same in.
        tiles, records: the logs; ``tiles`` and ``statistics`` go on across a resume.
        tiles_done: rows of ``tiles`` whose tiles are in the maps.
        monitor: the health monitor's state after the last of them.
        frame_done: told of each frame that is done, from the thread that writes.
        watcher: told of each frame that begins and of finished pixels, from that thread.
    """

    output: Path
    model: str
    classes: Sequence[ClassSpec]
    probabilities: bool = False
    live: bool
    journal: Journal
    key: Mapping[str, Any]
    tiles: TileLog
    records: FrameLog | None
    """None where there is one frame, which needs no log."""
    statistics: Statistics
    tiles_done: int
    monitor: Mapping[str, Any] | None
    frame_done: Callable[[FrameRecord], None] = lambda _: None
    watcher: Observer = field(default_factory=Observer)
    pixels_mapped: int = 0
    """By this process."""
    publish_s: float = 0.0
    """What publishing took."""
    described: tuple[Mapping[Sensor, RasterUsed], GridUsed] | None = None
    """The first frame that had a map."""
    _frame: OpenFrame | None = None
    """The frame under way."""
    _counted: int = field(init=False)
    _maps: _Maps | None = None
    _tally: FrameTally = field(default_factory=FrameTally)
    _last: TileReport | None = None
    _done: list[FrameRecord] = field(default_factory=list)
    _entry: bytes = b""
    _saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._counted = 0 if self.live else self.tiles_done  # tiles below were counted before a resume
        self._remember()

    def begin(
        self, grid: Grid, inputs: Mapping[str, Any], *, resume: bool = False, windows: FilePrefix | None = None
    ) -> None:
        """Create the unfinished maps of a frame, or open those of an interrupted run.

        Args:
            grid: of the frame.
            inputs: its rasters, described.
            resume: go on with maps that are there.
            windows: what the journal vouches for in them.

        Raises:
            OutputError: there is no room for them.
            ResumeError: they are missing or damaged.
        """
        with writing(self._folder, MAKE_ROOM):
            if not resume and self._folder.exists():  # of a live frame that was begun: GDAL replaces no torn file
                shutil.rmtree(self._folder)
        writer = MapWriter.create(
            self._folder, grid, self.classes, resume=resume, mark=windows, probabilities=self.probabilities
        )
        preview = Preview(
            self._folder, height=grid.height, width=grid.width, sensors=map(Sensor, inputs), resume=resume
        )
        self._maps = _Maps(writer=writer, preview=preview)
        rasters, used = described(inputs, grid)
        self.described = self.described or (rasters, used)
        self.watcher.frame_begun("" if self._frame is None else self._frame.frame.stamp, used, rasters)
        if resume:
            self._tally.pixels = PixelCounts(
                provenance=[*self.statistics.pixels.provenance], classes=[*self.statistics.pixels.classes]
            )
            for block in writer.written() if self.watcher.sees_pixels else ():
                self.watcher.mapped(block)

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Compose a tile and write what is finished; with a live frame's last one publish its maps."""
        if not self.live and time.monotonic() - self._saved_at > CHECKPOINT_S:
            self.checkpoint()  # of the tiles before: this one's row is not in the log yet
        frame = job.frame
        assert frame is not None
        self._frame = frame
        self._tally.begin(job)
        if job.tile.index >= self._counted:
            self.monitor = job.monitor or self.monitor
            switch = self.statistics.add_tile(job)
            if switch is not None:
                self.watcher.switched(frame.frame.stamp, switch)
            self._tally.add(job)
        if frame.stitcher is None or frame.grid is None:
            return
        if self._maps is None:
            self.begin(frame.grid, frame.inputs)
        assert self._maps is not None
        self._maps.preview.add_job(job)
        for block in frame.stitcher.add(job.tile, job.provenance, outputs):
            self._put(block)
        if self.live and job.tile.index == frame.tiles - 1:
            self.publish()

    def _put(self, block: MapBlock) -> None:
        assert self._maps is not None
        window = block.window
        self._maps.writer.write(window.row, window.col, *block.layers)
        self._maps.preview.add_block(block)
        self.watcher.mapped(block)
        counts = PixelCounts.of(block)
        self.statistics.pixels.add(counts)
        self._tally.pixels.add(counts)
        self.pixels_mapped += window.pixels

    def fill(
        self,
        blocks: Iterable[MapBlock],
        reports: Iterable[TileReport],
        *,
        preview: Path,
        monitor: Mapping[str, Any] | None,
    ) -> None:
        """Put in all that others have mapped of a raster, after :meth:`begin`; a resumed run then publishes it.

        Args:
            blocks: all pixels, each once.
            reports: all tiles in order; ``statistics`` count them already.
            preview: canvases that hold the inputs.
            monitor: the health monitor's state after the last tile.

        Raises:
            OutputError: the system refuses.
            ResumeError: the canvases are damaged.
        """
        assert self._maps is not None
        self._maps.preview.restore(preview)
        for block in blocks:
            self._put(block)
        for report in reports:
            self.tiles.append(report)
            self.tiles_done += 1
        self.monitor = monitor
        self._remember()
        self.checkpoint()

    def written(self, report: TileReport) -> None:
        """Log the tile just added; with a live frame's last one the frame as well."""
        if report.tile.index >= self._counted:
            self.tiles.append(report)
        frame = self._frame
        assert frame is not None
        if report.tile.index == frame.tiles - 1:
            self._last = report
        if self.live:
            if self._last is not None:
                self.tiles_done += frame.tiles
                self.complete()
        elif frame.stitcher is not None and frame.stitcher.tiles_done == report.tile.index + 1:
            self.tiles_done = frame.stitcher.tiles_done
            self._remember()

    def publish(self) -> None:
        """Put the finished maps of the frame under way in place, all or none of them.

        Raises:
            OutputError: the system refuses; publishing can be tried again.
        """
        assert self._maps is not None
        assert self._frame is not None
        began = time.perf_counter()
        whole, stamp = self._folder / "maps", self._frame.frame.stamp
        self._maps.writer.publish(whole)
        place = self.output / stamp
        with writing(place, MAKE_ROOM):
            self._maps.preview.save(
                whole / QUICKLOOK_NAME, model=self.model, classes=self.classes, pixels=self._tally.pixels
            )
            sync(whole / QUICKLOOK_NAME)
            if stamp:
                mark(whole, frame_mark(stamp))
            sync(whole)
            if stamp and not os.path.lexists(place):
                whole.rename(place)
            else:
                if stamp and not is_marked(place, frame_mark(stamp)):
                    raise OutputError(f"{place} was made while its frame was mapped, by somebody else: move it away")
                for file in sorted(whole.iterdir()):  # of a frame: published before a kill, and not counted
                    file.replace(place / file.name)
                if not self.probabilities:  # of an older run: they would tell of other maps
                    (place / f"{PROBABILITIES}.tif").unlink(missing_ok=True)
                sync(place)
            sync(self.output)
            if self.live:
                shutil.rmtree(self._folder)
        self._maps = None
        self.publish_s += time.perf_counter() - began

    def complete(self) -> FrameRecord:
        """Write down that the frame under way is done."""
        assert self._last is not None
        assert self._frame is not None
        record = self._tally.record(self._frame, self._last)
        self._tally, self._last = FrameTally(), None
        if self.records is None:
            self._done.append(record)
        else:
            self.records.append(record)
            self._remember()
            self.checkpoint()
            _tell(record)
        self.frame_done(record)
        return record

    def done(self) -> list[FrameRecord]:
        """The frames that are done, those before a resume included."""
        return self._done if self.records is None else list(read_frame_log(self.records.path))

    def checkpoint(self) -> None:
        """Write down the last state that a resumed run can go on from; what it promises is on the disk before it."""
        with writing(self.journal.folder, MAKE_ROOM):
            if self._maps is not None and not self.live:  # a live frame under way is begun anew
                self._maps.writer.flush()
                self._maps.preview.flush()
            self.tiles.flush()
            self.journal.write(self._entry)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Let go of the maps under way. They stay as they are."""
        if self._maps is not None:
            self._maps.writer.close()

    @property
    def _folder(self) -> Path:
        return self.journal.folder / "frame"

    def _remember(self) -> None:
        entry = Entry(
            key=self.key,
            tiles_done=self.tiles_done,
            statistics=self.statistics,
            monitor=self.monitor,
            tiles=self.tiles.mark,
            frames=None if self.records is None else self.records.mark,
            windows=None if self._maps is None or self.live else self._maps.writer.mark,
        )
        self._entry = entry.encode()


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
