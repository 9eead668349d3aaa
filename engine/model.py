"""A model that is open, and the maps that it makes in memory: what ``import engine`` offers.

The maps are those of ``python -m engine.run`` on the same pixels, byte for byte: the same tiles, the same graphs, the
same stitching.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from engine import demo
from engine.backends.base import BackendInfo, ExecutionPrecision, Output, PerformanceHint
from engine.backends.options import BackendName, BackendOptions
from engine.backends.resilient import ResilientBackend, open_chain
from engine.contract.bundle import Bundle
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario, Sensor
from engine.frames import Frame, RasterOpener
from engine.health.monitor import Absent, Fault
from engine.inputs import rasters_given
from engine.interrupt import first_signal
from engine.plan import Plan, plan_for
from engine.rasters.area import AreaInput
from engine.rasters.georeference import gdal_environment
from engine.rasters.names import RasterName
from engine.rasters.raster import RasterInput, SensorRasters
from engine.rasters.stretch import parse_stretch
from engine.request import RasterFiles, RunRequest
from engine.resolution import Gsd
from engine.result import Result, ResultSink
from engine.stitcher import Blend, Tiling
from engine.stream import stream

READY_RESULTS = 2
"""So many results of a stream may wait to be taken; then the pipeline waits."""

FrameInput: TypeAlias = "Mapping[str, RasterInput | None] | Sequence[RasterInput | None]"
"""The rasters of one frame: ``{"rgir": ..., "ndsm": ...}``, or both in this order; None where a sensor delivered
nothing."""


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
        dsm: RasterName | None = None,
        dtm: RasterName | None = None,
        ground: Literal["auto"] | None = None,
        stac: str | Path | None = None,
        watch: bool | None = None,
        health: Sequence[str] = (),
        halo_px: int | None = None,
        blend: Blend = "hann",
        rgir_bands: tuple[int, int, int] | None = None,
        ndsm_scale_m: float | None = None,
        gsd: Gsd = "auto",
        probabilities: bool = False,
        stretch: str | None = None,
        area: AreaInput | None = None,
        audit_every: int | None = None,
        readers: int | None = None,
    ) -> Result:
        """Map one raster, or a pair.

        A raster is an array, a memory-mapped one too, a path, or an open rasterio dataset, which only this call may use
        while it lasts. It is read tile by tile, so that it may be larger than memory.

        Args:
            rgir: near-infrared, red, green: uint8 [3, H, W]. Masked pixels have no data.
            ndsm: height above ground in metres: floating point [H, W] or [1, H, W]. Masked and NaN pixels have no data.
            dsm, dtm: in place of ``ndsm`` the files of a surface and a terrain model in metres, which are subtracted.
            ground: ``"auto"`` finds the ground below ``dsm`` where there is no ``dtm``.
            stac: in place of all these a STAC item's JSON, a file or a URL.
            watch: judge every sensor in every tile, and map without one that is dead; None does where both are given.
            health: limits other than the bundle's, such as ``"ndsm.max_height_m=80"``.
            halo_px: context around each tile; None takes the bundle's.
            blend: ``"hann"`` cross-fades tiles where they overlap, ``"none"`` does not.
            rgir_bands: of a file or dataset, the numbers of the bands that hold near-infrared, red, green.
            ndsm_scale_m: metres per unit of ``ndsm`` (0.1 for decimetres).
            gsd: ground sampling distance in metres at which the raster is mapped, resampled tile by tile; the maps
                come back on its own grid. ``"auto"`` is the nearest that the bundle maps best at, ``"off"`` the
                raster's own.
            probabilities: keep the probability of each class as well.
            stretch: how ``rgir`` of more than 8 bits becomes 8: ``"percent"`` (2nd to 98th percentile of each band),
                ``"percent=1,99"``, ``"reflectance=10000"``, ``"90:3000,60:1800,70:1500"`` for NIR, red and green, or
                the ``run.json`` of an earlier run. None refuses it.
            area: the part to map, as a vector file or a box (left, bottom, right, top) in the raster's CRS; the maps
                are as large as its bounds. None is all of the raster.
            audit_every: one tile in so many is mapped by all graphs, to see which sensor is wrong; 0 is none, None as
                the bundle says.
            readers: threads that decode the raster; None is as many as the backend leaves room for.

        Raises:
            UsageError: neither is given, or an argument makes no sense.
            InputError: a raster cannot be used, or both do not fit together.
            BackendError: no backend is left that answers.
        """
        paths, rgir_bands = rasters_given(
            rgir=rgir,
            ndsm=ndsm,
            dsm=dsm,
            dtm=dtm,
            ground=ground,
            stac=None if stac is None else str(stac),
            rgir_bands=rgir_bands,
        )
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
            gsd=gsd,
            probabilities=probabilities,
            stretch=None if stretch is None else parse_stretch(stretch),
            area=area,
            audit_every=audit_every,
            readers=readers,
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
        gsd: Gsd = "auto",
        stretch: str | None = None,
        probabilities: bool = False,
    ) -> Iterator[Result]:
        """Map frames one after the other, reading ahead; the order is kept.

        Sensors are judged across frames: one that fails is left out from the tile on in which it does, and comes back
        once enough of its tiles have been good.

        Args:
            frames: mappings ``{"rgir": ..., "ndsm": ...}`` or pairs in that order, of rasters as :meth:`segment` takes
                them; None for a sensor that delivered nothing. Iterated in a thread of its own, which is waited for
                when the results are not wanted any more.
            watch: judge every sensor in every tile; False trusts whatever is delivered.
            health, halo_px, blend, rgir_bands, ndsm_scale_m, gsd, probabilities: see :meth:`segment`.
            stretch: see there; not percentiles, which would stretch each frame in its own way.

        Yields:
            The maps of each frame, as soon as they are complete.

        Raises:
            UsageError: a frame holds no raster, or an argument makes no sense.
            InputError: a raster of a frame cannot be used.
            BackendError: no backend is left that answers.
        """
        chosen = None if stretch is None else parse_stretch(stretch)
        if chosen is not None:
            chosen.check_for_frames()
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
            gsd=gsd,
            stretch=chosen,
            probabilities=probabilities,
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
        source = plan.open_source(backend)
        with first_signal(source.stop) as received:
            stream(source, backend=backend, sink=ResultSink(plan, backend, deliver), report=lambda _: None)
        if received:
            raise KeyboardInterrupt

    def _stream(self, plan: Plan) -> Iterator[Result]:
        backend = self._backend(plan.tiling)
        source = plan.open_source(backend)
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
                stream(source, backend=backend, sink=ResultSink(plan, backend, deliver), report=lambda _: None)
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
