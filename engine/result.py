"""The maps of one frame in memory, and how they come there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Outputs
from engine.backends.resilient import ResilientBackend
from engine.contract.atomic import sync
from engine.contract.bundle import Manifest
from engine.contract.errors import writing
from engine.contract.sensors import Scenario, Sensor
from engine.frame_log import FrameRecord
from engine.frames import OpenFrame
from engine.job import Job, TileReport
from engine.journal import Journal, PixelCounts, Statistics
from engine.output import QUICKLOOK_NAME, REPORT_NAME, check_output
from engine.ownership import RUN_NAME, owned
from engine.plan import Plan
from engine.polygons.convert import SIMPLIFY_PX, SMALLEST_PX, Polygons
from engine.preview import Preview
from engine.rasters.cog import MapWriter
from engine.rasters.georeference import Grid
from engine.rasters.map_kinds import PROBABILITIES
from engine.rasters.spool_files import BLOCK_PX
from engine.record import GridUsed, RasterUsed, RunRecord, TileTimes, described
from engine.sink import FrameTally
from engine.stac.items import ITEM_NAME, map_item, write_item
from engine.tile_log import NAME as TILE_LOG_NAME
from engine.tile_log import TileLog, row_of

IN_MEMORY_PX = 100_000_000
"""Maps with more pixels lie in a temporary file that is mapped into memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The maps of one frame.

    Attributes:
        classes: uint8 [H, W], index of the most probable class; 255 where nothing is mapped.
        confidence: uint8 [H, W], its probability x 255; 0 where nothing is mapped.
        provenance: uint8 [H, W], what a pixel was mapped from: 1 both sensors, 2 RGIR only, 3 nDSM only, 0 neither.
        probabilities: uint8 [C, H, W], the probability of each class x 254, 255 where nothing is mapped; None unless
            they were asked for.
        record: what :meth:`save` writes as ``run.json``: counts, the sensors' health, latencies.
    """

    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    provenance: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None
    record: RunRecord
    _manifest: Manifest = field(repr=False)
    _grid: Grid = field(repr=False)
    _preview: Preview = field(repr=False)
    _pixels: PixelCounts = field(repr=False)
    _reports: Sequence[TileReport] = field(repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class index."""
        return tuple(spec.name for spec in self._manifest.classes)

    def save(
        self,
        output: str | Path,
        *,
        overwrite: bool = False,
        polygons: str | Path | None = None,
        smallest_px: int = SMALLEST_PX,
        simplify_px: float = SIMPLIFY_PX,
    ) -> Path:
        """Write what ``engine.run`` writes: the three maps as GeoTIFF, quicklook.png, tiles.csv, run.json.

        Args:
            output: a folder; made if it is missing.
            overwrite: replace results that are there.
            polygons: write the map as polygons, too: a file of type .gpkg, .fgb or .parquet (extra ``gis``).
            smallest_px: polygons with fewer pixels are given to their largest neighbour.
            simplify_px: borders of polygons may move by so many pixels.

        Returns:
            The folder.

        Raises:
            UsageError: polygons cannot be made; nothing is written.
            OutputError: it holds results, or the system refuses.
        """
        output = Path(output)
        wanted = None
        if polygons is not None:
            wanted = Polygons(
                path=Path(polygons), smallest_px=smallest_px, simplify_px=simplify_px, overwrite=overwrite
            )
            wanted.check()
        journal, manifest = Journal(output), self._manifest
        with owned(output):
            check_output(output, overwrite=overwrite, resume=False)
            journal.remove()
            journal.make()
            try:
                layers = [self.classes, self.confidence, self.provenance]
                if self.probabilities is not None:
                    layers.append(self.probabilities)
                with MapWriter.create(
                    journal.folder / "frame",
                    self._grid,
                    manifest.classes,
                    resume=False,
                    probabilities=self.probabilities is not None,
                ) as writer:
                    for row in range(0, len(self.classes), BLOCK_PX):
                        writer.write(row, 0, *(layer[..., row : row + BLOCK_PX, :] for layer in layers))
                    writer.publish(output)
                with writing(output):
                    if self.probabilities is None:  # of an older run: they would tell of other maps
                        (output / f"{PROBABILITIES}.tif").unlink(missing_ok=True)
                    quicklook = journal.folder / QUICKLOOK_NAME
                    self._preview.save(quicklook, model=manifest.name, classes=manifest.classes, pixels=self._pixels)
                    sync(quicklook)
                    quicklook.replace(output / QUICKLOOK_NAME)
                    with TileLog(journal.folder / TILE_LOG_NAME) as tiles:
                        for report in self._reports:
                            tiles.append(report)
                        tiles.flush()
                    (journal.folder / TILE_LOG_NAME).replace(output / TILE_LOG_NAME)
                    (output / REPORT_NAME).unlink(missing_ok=True)  # of an older run: it would tell of other maps
                    self.record.write(output / RUN_NAME)
                write_item(output / ITEM_NAME, map_item(output, self.record))
            finally:
                journal.remove()
        if wanted is not None:
            wanted.write(output, bar=False)
        return output


class ResultSink:
    """Collects the maps of each frame in memory; an :class:`engine.stream.Sink` and an :class:`engine.plan.Counted`."""

    def __init__(self, plan: Plan, backend: ResilientBackend, deliver: Callable[[Result], None]) -> None:
        self._plan, self._backend, self._deliver = plan, backend, deliver
        self._frame: OpenFrame | None = None
        self.statistics, self.pixels_mapped = Statistics(), 0
        self.described: tuple[Mapping[Sensor, RasterUsed], GridUsed] | None = None

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Compose a tile."""
        if job.frame is not self._frame:
            self._begin(job.frame)
        assert self._frame is not None
        assert self._frame.stitcher is not None
        self._tally.add(job)
        self.statistics.add_tile(job)
        self._preview.add_job(job)
        for block in self._frame.stitcher.add(job.tile, job.provenance, outputs):
            window = block.window
            place = np.s_[window.row : window.row + window.height, window.col : window.col + window.width]
            for layer, values in zip(self._maps, (block.classes, block.confidence, block.provenance), strict=False):
                layer[place] = values
            if block.probabilities is not None:
                self._maps[3:, *place] = block.probabilities
            self._preview.add_block(block)
            counts = PixelCounts.of(block)
            self._tally.pixels.add(counts)
            self.statistics.pixels.add(counts)
            self.pixels_mapped += window.pixels

    def written(self, report: TileReport) -> None:
        """With the last tile of a frame hand out its maps."""
        self._reports.append(report)
        frame = self._frame
        assert frame is not None
        assert frame.grid is not None
        if report.tile.index < frame.tiles - 1:
            return
        self._record = self._tally.record(frame, report)
        total_s = time.perf_counter() - self._clock
        record = self._plan.record(
            started_at=self._started_at,
            sink=self,
            times=TileTimes(map(row_of, self._reports)),
            backend=self._backend.info,
            backend_events=self._backend.events,
            stream_s=total_s,
            publish_s=0.0,
            total_s=total_s,
        )
        self._deliver(
            Result(
                classes=self._maps[0],
                confidence=self._maps[1],
                provenance=self._maps[2],
                probabilities=self._maps[3:] if self._plan.tiling.probabilities else None,
                record=record,
                _manifest=self._plan.bundle.manifest,
                _grid=frame.grid,
                _preview=self._preview,
                _pixels=self.statistics.pixels,
                _reports=self._reports,
            )
        )

    def done(self) -> list[FrameRecord]:
        """The frame that was mapped last."""
        return [self._record]

    def _begin(self, frame: OpenFrame | None) -> None:
        """Make room for the maps of a frame; what is remembered of the sensors stays."""
        assert frame is not None
        assert frame.grid is not None
        before, self.statistics = self.statistics, Statistics()
        self.statistics.scenario, self.statistics.sensors.last = before.scenario, before.sensors.last
        self._frame, grid = frame, frame.grid
        self.described = described(frame.inputs, grid)
        self.pixels_mapped = 0
        self._tally, self._reports = FrameTally(), list[TileReport]()
        self._started_at, self._clock = datetime.now(UTC), time.perf_counter()
        tiling = self._plan.tiling
        self._maps = _reserve((3 + tiling.classes * tiling.probabilities, grid.height, grid.width))
        self._preview = Preview(None, height=grid.height, width=grid.width, sensors=map(Sensor, frame.inputs))


def _reserve(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Room for the maps; where it is much, in a file that is gone with the last array that shows it."""
    if shape[1] * shape[2] <= IN_MEMORY_PX:
        return np.zeros(shape, np.uint8)
    folder = Path(tempfile.gettempdir())
    with writing(folder, "free space, or set TMPDIR to another folder"), tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, mode="w+", shape=shape)
