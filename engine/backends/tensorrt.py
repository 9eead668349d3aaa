"""TensorRT on a CUDA device: an engine per scenario resident, replayed as CUDA graphs.

::

    slot A   upload | run      | download
    slot B            upload   | run      | download
    slot C                       upload   | run      | download

One thread owns the device (see :mod:`engine.backends.device`), takes tiles from a queue and gives each a free slot of
:mod:`engine.backends.tensorrt_pipeline`; the copies of one tile hide behind the engine of another.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

from engine.backends.base import Backend, BackendInfo, ExecutionPrecision, Inputs, Output, Outputs
from engine.backends.device import CudaDevice, first_device
from engine.backends.layout import TileLayout
from engine.backends.plan_choice import PlanChoice, choose_plans
from engine.backends.tensorrt_engine import import_library
from engine.backends.tensorrt_pipeline import SLOTS, Pipeline, Slot, let_go
from engine.backends.words import said
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, BackendUnavailableError, DeviceLostError, EngineError
from engine.contract.plans import Device, Library, PlanHost
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(kw_only=True, eq=False)
class _QueuedTile:
    scenario: Scenario
    inputs: Inputs
    answer: Future[Outputs]


class TensorRtBackend(Backend):
    """Tiles through TensorRT 10, TensorRT 11 or TensorRT-RTX, whichever has plans for this device.

    Args:
        bundle: whose graphs the plans were built from.
        scenarios: at least one; the first decides the precision when it is ``auto``.
        wanted: the outputs to fetch from the device.
        precision: of the plans.
        threads: of no use; the GPU computes.
        plans: folder of the plans; None is the one under the bundle.
        cuda_graphs: False queues the engines kernel by kernel, for comparison.

    Raises:
        BackendUnavailableError: there is no device, no library, or no plan that it may load.
        IntegrityError: a plan is damaged.
        BackendError: the library or the device failed.
    """

    def __init__(
        self,
        bundle: Bundle,
        scenarios: Iterable[Scenario],
        wanted: Iterable[Output],
        *,
        precision: ExecutionPrecision = "auto",
        threads: int | None = None,
        plans: Path | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        del threads
        device = first_device()
        wanted = tuple(wanted)
        library, choice = _library_and_plans(bundle, tuple(scenarios), wanted, precision, device, plans)
        log.info("TensorRT plans in %s", choice.reason)
        layout = TileLayout.of(bundle.manifest, wanted)
        self._gate = threading.Lock()
        """Around the queue and :attr:`_refusal`: no tile may be queued behind the end of the thread that answers."""
        self._refusal: str | None = None
        """Why no more tiles are taken."""
        self._tiles: queue.SimpleQueue[_QueuedTile | None] = queue.SimpleQueue()
        opened: Future[BackendInfo] = Future()
        # A daemon, so that a device that hangs does not keep the process from ending.
        self._worker = threading.Thread(
            target=self._work, args=(opened, library, choice, layout, cuda_graphs), name="tensorrt", daemon=True
        )
        self._worker.start()
        try:
            self.info = opened.result()
        except BaseException:
            self.close()
            raise

    def submit(self, scenario: Scenario, inputs: Inputs) -> Future[Outputs]:
        """Queue one tile for the next free slot."""
        tile = _QueuedTile(scenario=scenario, inputs=inputs, answer=Future())
        with self._gate:
            if self._refusal is not None:
                raise BackendError(f"{self._refusal}: open it again")
            self._tiles.put(tile)
        return tile.answer

    def close(self) -> None:
        """Wait for the queue to empty; free the device."""
        with self._gate:
            if self._refusal is None:
                self._refusal = "the TensorRT backend has been closed"
                self._tiles.put(None)
        self._worker.join()

    def _work(
        self, opened: Future[BackendInfo], library: Library, choice: PlanChoice, layout: TileLayout, cuda_graphs: bool
    ) -> None:
        """The life of the thread that owns the device."""
        try:
            self._own_device(opened, library, choice, layout, cuda_graphs)
        except Exception as error:
            translated = _translated(error, f"{library} could not prepare its plans")
            if opened.done():
                log.warning("TensorRT did not end cleanly: %s", translated)
            else:
                opened.set_exception(translated)
        finally:
            self._refuse_what_is_left()

    def _own_device(
        self, opened: Future[BackendInfo], library: Library, choice: PlanChoice, layout: TileLayout, cuda_graphs: bool
    ) -> None:
        with CudaDevice() as gpu:
            try:
                with closing(Pipeline(gpu, layout)) as pipeline:
                    try:
                        pipeline.open(import_library(library), choice, cuda_graphs=cuda_graphs)
                    except Exception as error:
                        let_go(error)
                        told = _told_lost(gpu, _translated(error, f"{library} could not prepare its plans"))
                        if told is error:
                            raise
                        raise told from error
                    opened.set_result(pipeline.info)
                    self._serve(gpu, pipeline)
            except BaseException as error:
                let_go(error)
                raise

    def _refuse_what_is_left(self) -> None:
        """Nobody answers any more: tiles that are queued, or about to be, must not wait for ever."""
        with self._gate:
            if self._refusal is None:
                self._refusal = "the thread of the TensorRT backend has ended"
        while True:
            try:
                tile = self._tiles.get_nowait()
            except queue.Empty:
                return
            if tile is not None and not tile.answer.done():
                tile.answer.set_exception(BackendError(f"{self._refusal} before it answered"))

    def _serve(self, gpu: CudaDevice, pipeline: Pipeline) -> None:
        """Keep the slots busy until None comes; finish what has begun."""
        flying: deque[tuple[_QueuedTile, Slot]] = deque()
        begun: set[_QueuedTile] = set()

        def land() -> None:
            tile, slot = flying.popleft()
            outputs = _attempt(gpu, tile, partial(pipeline.land, slot))
            if outputs is not None:
                tile.answer.set_result(outputs)
            begun.discard(tile)

        try:
            while True:
                try:
                    tile = self._tiles.get(block=not flying)
                except queue.Empty:
                    land()
                    continue
                if tile is None:
                    break
                if not tile.answer.set_running_or_notify_cancel():
                    continue
                begun.add(tile)
                if len(flying) == SLOTS:
                    land()
                slot = _attempt(gpu, tile, partial(pipeline.launch, tile.scenario, tile.inputs))
                if slot is not None:
                    flying.append((tile, slot))
                else:
                    begun.discard(tile)
            while flying:
                land()
        finally:
            for tile in begun:
                tile.answer.set_exception(BackendError("the thread of the TensorRT backend ended before it answered"))


def _library_and_plans(
    bundle: Bundle,
    scenarios: Sequence[Scenario],
    wanted: Sequence[Output],
    precision: ExecutionPrecision,
    device: Device,
    plans: Path | None,
) -> tuple[Library, PlanChoice]:
    """The first library that can be imported and has plans; TensorRT before TensorRT-RTX."""
    refusals = []
    for library in get_args(Library):
        try:
            host = PlanHost(library=library, library_version=import_library(library).__version__, device=device)
            return library, choose_plans(bundle, scenarios, wanted, precision, host, cache=plans)
        except BackendUnavailableError as error:
            refusals.append(str(error))
    raise BackendUnavailableError("; ".join(refusals))


def _attempt(gpu: CudaDevice, tile: _QueuedTile, action: Callable[[], _T]) -> _T | None:
    """What ``action`` returns; None when it failed and the tile's future holds the error."""
    try:
        return action()
    except Exception as error:
        let_go(error)
        told = _translated(error, f"TensorRT failed on a tile of scenario {tile.scenario}")
        tile.answer.set_exception(_told_lost(gpu, told))
        return None


def _told_lost(gpu: CudaDevice, error: Exception) -> Exception:
    """The error, as a :class:`DeviceLostError` where nothing will ever work on this device again in this process."""
    code = gpu.lost()
    if code is None:
        return error
    lost = DeviceLostError(
        f"{error} (CUDA error {code}, which no reopening cures): restart the process to use the GPU again", code=code
    )
    lost.__cause__ = error
    return lost


def _translated(error: Exception, what: str) -> EngineError:
    """The bindings of both libraries raise whatever fits; ours are passed on."""
    if isinstance(error, EngineError):
        return error
    translated = BackendError(f"{what}: {said(error)}")
    translated.__cause__ = error
    return translated
