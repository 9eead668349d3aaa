"""A model that is open, and the maps that it makes in memory: what ``import engine`` offers.

The maps are those of ``python -m engine.run`` on the same pixels, byte for byte: the same tiles, the same graphs, the
same stitching.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine import demo
from engine.backends import BackendName
from engine.backends.base import BackendInfo, ExecutionPrecision, Output, Outputs, PerformanceHint
from engine.backends.options import BackendOptions
from engine.backends.resilient import ResilientBackend, open_chain
from engine.contract.bundle import Bundle, Manifest
from engine.contract.errors import UsageError, writing
from engine.contract.sensors import Scenario, Sensor
from engine.frame_log import FrameRecord
from engine.frames import Frame, OpenFrame, RasterOpener
from engine.health.monitor import Absent, Fault
from engine.interrupt import first_signal
from engine.job import Job, TileReport
from engine.journal import Journal, PixelCounts, Statistics
from engine.ownership import RUN_NAME, owned
from engine.plan import REPORT_NAME, Plan, check_output, plan_for
from engine.preview import Preview
from engine.rasters.cog import BLOCK_PX, MapWriter
from engine.rasters.georeference import Grid, gdal_environment
from engine.rasters.raster import RasterInput, SensorRasters
from engine.record import GridUsed, RasterUsed, RunRecord, TileTimes, described
from engine.request import RasterFiles, RunRequest
from engine.sink import QUICKLOOK_NAME, Tally
from engine.stitcher import Blend, Tiling
from engine.stream import stream
from engine.tile_log import NAME as TILE_LOG_NAME
from engine.tile_log import TileLog, row_of

IN_MEMORY_PX = 100_000_000
"""Maps with more pixels lie in a temporary file that is mapped into memory."""
READY_RESULTS = 2
"""So many results of a stream may wait to be taken; then the pipeline waits."""

FrameInput: TypeAlias = "Mapping[str, RasterInput | None] | Sequence[RasterInput | None]"
"""The rasters of one frame: ``{"rgir": ..., "ndsm": ...}``, or both in this order; None where a sensor delivered
nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The maps of one frame.

    Attributes:
        classes: uint8 [H, W], index of the most probable class; 255 where nothing is mapped.
        confidence: uint8 [H, W], its probability x 255; 0 where nothing is mapped.
        provenance: uint8 [H, W], what a pixel was mapped from: 1 both sensors, 2 RGIR only, 3 nDSM only, 0 neither.
        record: what :meth:`save` writes as ``run.json``: counts, the sensors' health, latencies.
    """

    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    provenance: NDArray[np.uint8]
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

    def save(self, output: str | Path, *, overwrite: bool = False) -> Path:
        """Write what ``engine.run`` writes: the three maps as GeoTIFF, quicklook.png, tiles.csv, run.json.

        Args:
            output: a folder; made if it is missing.
            overwrite: replace results that are there.

        Returns:
            The folder.

        Raises:
            OutputError: it holds results, or the system refuses.
        """
        output = Path(output)
        journal, manifest = Journal(output), self._manifest
        with owned(output):
            check_output(output, overwrite=overwrite, resume=False)
            journal.remove()
            journal.make()
            try:
                with MapWriter.create(journal.folder / "frame", self._grid, manifest.classes, resume=False) as writer:
                    for row in range(0, len(self.classes), BLOCK_PX):
                        layers = (self.classes, self.confidence, self.provenance)
                        writer.write(row, 0, *(layer[row : row + BLOCK_PX] for layer in layers))
                    writer.publish(output)
                with writing(output):
                    quicklook = journal.folder / QUICKLOOK_NAME
                    self._preview.save(quicklook, model=manifest.name, classes=manifest.classes, pixels=self._pixels)
                    quicklook.replace(output / QUICKLOOK_NAME)
                    with TileLog(journal.folder / TILE_LOG_NAME) as tiles:
                        for report in self._reports:
                            tiles.append(report)
                    (journal.folder / TILE_LOG_NAME).replace(output / TILE_LOG_NAME)
                    (output / REPORT_NAME).unlink(missing_ok=True)  # of an older run: it would tell of other maps
                    self.record.write(output / RUN_NAME)
            finally:
                journal.remove()
        return output


class Model:
    """A bundle whose graphs are compiled, warm and checked against its golden tile. A context manager.

    Made by :func:`engine.load`. One thread at a time may use it.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self.bundle, self._options = bundle, options
        self._stack = ExitStack()
        self._backends: dict[tuple[Output, ...], ResilientBackend] = {}
        self._stack.enter_context(gdal_environment())
        try:
            self._backend(Tiling.of(bundle.manifest, halo_px=None, blend="hann"))
        except BaseException:
            self.close()
            raise

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class index."""
        return tuple(spec.name for spec in self.bundle.manifest.classes)

    @property
    def backend(self) -> BackendInfo:
        """What infers now."""
        return next(iter(self._backends.values())).info

    def segment(
        self,
        *,
        rgir: RasterInput | None = None,
        ndsm: RasterInput | None = None,
        watch: bool | None = None,
        health: Sequence[str] = (),
        halo_px: int | None = None,
        blend: Blend = "hann",
        rgir_bands: tuple[int, int, int] | None = None,
        ndsm_scale_m: float | None = None,
    ) -> Result:
        """Map one raster, or a pair.

        A raster is an array, a memory-mapped one too, a path, or an open rasterio dataset, which only this call may use
        while it lasts. It is read tile by tile, so that it may be larger than memory.

        Args:
            rgir: near-infrared, red, green: uint8 [3, H, W]. Masked pixels have no data.
            ndsm: height above ground in metres: floating point [H, W] or [1, H, W]. Masked and NaN pixels have no data.
            watch: judge every sensor in every tile, and map without one that is dead; None does where both are given.
            health: limits other than the bundle's, such as ``"ndsm.max_height_m=80"``.
            halo_px: context around each tile; None takes the bundle's.
            blend: ``"hann"`` cross-fades tiles where they overlap, ``"none"`` does not.
            rgir_bands: of a file or dataset, the numbers of the bands that hold near-infrared, red, green.
            ndsm_scale_m: metres per unit of ``ndsm`` (0.1 for decimetres).

        Raises:
            UsageError: neither is given, or an argument makes no sense.
            InputError: a raster cannot be used, or both do not fit together.
            BackendError: no backend is left that answers.
        """
        paths = _given({"rgir": rgir, "ndsm": ndsm})
        if not paths:
            raise UsageError("rgir or ndsm must be given, received neither: pass at least one raster")
        request = RunRequest(
            source=RasterFiles(paths=paths),
            bundle=self.bundle.root,
            output=Path(),
            backend=self._options,
            watch=len(paths) == len(Sensor) if watch is None else watch,
            health=tuple(health),
            halo_px=halo_px,
            blend=blend,
            rgir_bands=rgir_bands,
            ndsm_scale_m=ndsm_scale_m,
        )
        results: list[Result] = []
        with ExitStack() as stack:
            plan = plan_for(request, self.bundle, stack)
            self._run(plan, results.append)
        return results[0]

    def stream(
        self,
        frames: Iterable[FrameInput],
        *,
        watch: bool = True,
        health: Sequence[str] = (),
        halo_px: int | None = None,
        blend: Blend = "hann",
        rgir_bands: tuple[int, int, int] | None = None,
        ndsm_scale_m: float | None = None,
    ) -> Iterator[Result]:
        """Map frames one after the other, reading ahead; the order is kept.

        Sensors are judged across frames: one that fails is left out from the tile on in which it does, and comes back
        once enough of its tiles have been good.

        Args:
            frames: mappings ``{"rgir": ..., "ndsm": ...}`` or pairs in that order, of rasters as :meth:`segment` takes
                them; None for a sensor that delivered nothing. Iterated in a thread of its own, which is waited for
                when the results are not wanted any more.
            watch: judge every sensor in every tile; False trusts whatever is delivered.
            health, halo_px, blend, rgir_bands, ndsm_scale_m: see :meth:`segment`.

        Yields:
            The maps of each frame, as soon as they are complete.

        Raises:
            UsageError: a frame holds no raster, or an argument makes no sense.
            InputError: a raster of a frame cannot be used.
            BackendError: no backend is left that answers.
        """
        request = RunRequest(
            source=RasterFiles(paths=dict.fromkeys(Sensor, Path())),
            bundle=self.bundle.root,
            output=Path(),
            backend=self._options,
            watch=watch,
            health=tuple(health),
            halo_px=halo_px,
            blend=blend,
            rgir_bands=rgir_bands,
            ndsm_scale_m=ndsm_scale_m,
        )
        plan = plan_for(request, self.bundle, ExitStack(), frames=lambda opener: _GivenFrames(frames, opener))
        return self._stream(plan)

    def close(self) -> None:
        """Free the graphs; a second call does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _backend(self, tiling: Tiling) -> ResilientBackend:
        """The one that answers what the tiling wants; opened when it is first asked for."""
        if tiling.wanted not in self._backends:
            opened = open_chain(self._options, self.bundle, scenarios=Scenario, wanted=tiling.wanted)
            self._backends[tiling.wanted] = self._stack.enter_context(opened)
        return self._backends[tiling.wanted]

    def _run(self, plan: Plan, deliver: Callable[[Result], None]) -> None:
        """Map all frames of a plan."""
        backend = self._backend(plan.tiling)
        source = plan.open_source(backend.info.slots)
        with first_signal(source.stop) as received:
            stream(source, backend=backend, sink=_ResultSink(plan, backend, deliver), report=lambda _: None)
        if received:
            raise KeyboardInterrupt

    def _stream(self, plan: Plan) -> Iterator[Result]:
        backend = self._backend(plan.tiling)
        source = plan.open_source(backend.info.slots)
        ready: queue.Queue[Result | BaseException | None] = queue.Queue(READY_RESULTS)
        ended = threading.Event()

        def deliver(result: Result | BaseException | None) -> None:
            while not ended.is_set():
                try:
                    ready.put(result, timeout=0.1)
                except queue.Full:
                    continue
                return

        def work() -> None:
            try:
                stream(source, backend=backend, sink=_ResultSink(plan, backend, deliver), report=lambda _: None)
            except BaseException as error:  # raised again where the results are taken
                deliver(error)
            else:
                deliver(None)

        working = threading.Thread(target=work, name="stream")
        working.start()
        try:
            while (result := ready.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            ended.set()
            source.stop()
            working.join()


def load(
    bundle: str | Path | None = None,
    *,
    backend: BackendName = "auto",
    precision: ExecutionPrecision = "auto",
    threads: int | None = None,
    hint: PerformanceHint = "throughput",
    plans: str | Path | None = None,
    watchdog_s: float = 30.0,
) -> Model:
    """Open a model: verify its bundle, compile its graphs, check them against its golden tile.

    >>> import engine, numpy
    >>> with engine.load() as model:
    ...     result = model.segment(ndsm=numpy.zeros((60, 80), numpy.float32))
    >>> result.classes.shape, result.classes.dtype
    ((60, 80), dtype('uint8'))
    >>> set(numpy.unique(result.provenance).tolist())  # 3: mapped from heights alone
    {3}

    Args:
        bundle: its folder; None is the demo model.
        backend: what infers; ``"auto"`` is TensorRT where it can run, else OpenVINO.
        precision: of the graphs; ``"auto"`` is the fastest.
        threads: CPU threads; None is all cores.
        hint: whether OpenVINO computes several tiles at a time, or one on all cores.
        plans: folder of TensorRT plans; None is the one under the bundle.
        watchdog_s: a backend that is silent for so long is replaced by the next.

    Returns:
        The model, a context manager.

    Raises:
        UsageError: a number is not positive.
        BundleError: the bundle cannot be trusted.
        BackendError: the backend, its library or its device cannot be used.
    """
    options = BackendOptions(
        name=backend,
        precision=precision,
        threads=threads,
        hint=hint,
        plans=None if plans is None else Path(plans),
        watchdog_s=watchdog_s,
    )
    return Model(Bundle.load(demo.BUNDLE if bundle is None else Path(bundle)), options)


def _given(rasters: Mapping[str, RasterInput | None]) -> dict[Sensor, RasterInput]:
    """What there is, by sensor."""
    unknown = sorted(set(rasters) - set(Sensor))
    if unknown:
        raise UsageError(f"a frame holds {' and '.join(Sensor)}, received {', '.join(unknown)}")
    return {sensor: given for sensor in Sensor if (given := rasters.get(sensor)) is not None}


class _GivenFrames:
    """Frames that a caller iterates over; an :class:`engine.frames.FrameSource`."""

    live = False

    def __init__(self, frames: Iterable[FrameInput], opener: RasterOpener) -> None:
        self._frames, self._opener = frames, opener
        self._finishing = threading.Event()

    def frames(self, waits: Callable[[bool], None]) -> Iterator[Frame]:
        """Frames in order."""
        for number, given in enumerate(self._frames):
            if self._finishing.is_set():
                return
            if not isinstance(given, Mapping):
                given = dict(zip(Sensor, given, strict=True))
            files, now = _given(given), time.monotonic()
            if not files:
                raise UsageError(f"each frame needs a raster, received none in frame {number}")
            missing = Absent(fault=Fault.LATE, detail="not delivered")
            absent = {sensor: missing for sensor in Sensor if sensor not in files}
            yield Frame(files=files, absent=absent, first_at=now, available_at=now)

    @contextmanager
    def open(self, frame: Frame) -> Iterator[tuple[SensorRasters, Mapping[Sensor, Absent]]]:
        """The rasters of a frame."""
        with self._opener.open(frame.files) as rasters:
            yield rasters, {}

    def finish(self) -> None:
        """Take no other frame."""
        self._finishing.set()

    def done(self, stamp: str) -> None:
        """Nobody waits for it."""

    def identity(self) -> Mapping[str, Any]:
        """Nothing to come back to."""
        return {}


class _ResultSink:
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
            for layer, values in zip(self._maps, (block.classes, block.confidence, block.provenance), strict=True):
                layer[place] = values
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
        self._tally, self._reports = Tally(), list[TileReport]()
        self._started_at, self._clock = datetime.now(UTC), time.perf_counter()
        self._maps = _reserve((3, grid.height, grid.width))
        self._preview = Preview(None, height=grid.height, width=grid.width, sensors=map(Sensor, frame.inputs))


def _reserve(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Room for three maps; where it is much, in a file that is gone with the last array that shows it."""
    if shape[1] * shape[2] <= IN_MEMORY_PX:
        return np.zeros(shape, np.uint8)
    folder = Path(tempfile.gettempdir())
    with writing(folder, "free space, or set TMPDIR to another folder"), tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, mode="w+", shape=shape)
