"""What TensorRT has on the device: engines, slots for tiles in flight, and the order of the work on them.

A slot is pinned host memory, device memory and three events. Inputs that come again and again in the same memory, as
those of a run do, are page-locked where they lie, and the device fetches them from there; others are copied to the
slot. Uploads, engines and downloads have a stream each, ordered by the slot's events. Engines never overlap: they share
one stream and one scratch memory. A CUDA graph holds addresses, so a scenario has one for each slot, all captured
before the first tile.

Everything here is made, used and dropped in the thread that owns the device (:mod:`engine.backends.device`).
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import BackendInfo, Inputs, Outputs
from engine.backends.device import CudaDevice, DeviceMemory, Event, Graph
from engine.backends.layout import TileLayout
from engine.backends.plan_choice import PlanChoice
from engine.backends.tensorrt_engine import ScenarioEngine, TensorRt
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)

SLOTS = 3
"""One tile on its way up, one in its engine, one on its way down."""
MOST_LOCKED = 64
"""So many arrays of inputs are page-locked at most, those used last. A run has two for each tile under way, and the
next run has others."""


@dataclass(kw_only=True, eq=False)
class Slot:
    """What one tile in flight needs; ``host`` uint8 [bytes] is pinned."""

    host: NDArray[np.uint8]
    device: DeviceMemory
    uploaded: Event
    ran: Event
    downloaded: Event


class Pipeline:
    """A tile goes in by :meth:`launch`, its answer comes out by :meth:`land`, several in between."""

    def __init__(self, gpu: CudaDevice, layout: TileLayout) -> None:
        self._gpu, self._layout = gpu, layout
        self._up, self._run, self._down = gpu.stream(), gpu.stream(), gpu.stream()
        self._engines: dict[Scenario, ScenarioEngine] = {}
        self._graphs: dict[tuple[Scenario, Slot], Graph] = {}
        self._slots: list[Slot] = []
        self._free: deque[Slot] = deque()
        self._scratch: DeviceMemory | None = None
        self._locked: dict[tuple[int, int], NDArray[np.uint8]] = {}
        """Inputs by address and size, alive as long as they are page-locked, so that no other array takes the place."""
        self._seen: Counter[tuple[int, int]] = Counter()
        self._locks = True

    def open(self, module: ModuleType, choice: PlanChoice, *, cuda_graphs: bool) -> None:
        """Load the engines, run each once on every slot, capture it."""
        library = TensorRt(module)
        for scenario, plan in choice.plans.items():
            self._engines[scenario] = ScenarioEngine(library, scenario, plan, self._layout)
        self._scratch = DeviceMemory(max(engine.scratch_bytes for engine in self._engines.values()))
        for engine in self._engines.values():
            engine.use_scratch(self._scratch.address, self._scratch.nbytes)
        for _ in range(SLOTS):
            self._slots.append(
                Slot(
                    host=self._gpu.pinned(self._layout.host_bytes),
                    device=DeviceMemory(self._layout.device_bytes),
                    uploaded=self._gpu.event(),
                    ran=self._gpu.event(),
                    downloaded=self._gpu.event(),
                )
            )
        self._free.extend(self._slots)
        for scenario, engine in self._engines.items():
            for slot in self._slots:
                self._warm_up(scenario, engine, slot, capture=cuda_graphs)
            engine.save_runtime_cache()
        self.info = BackendInfo(
            name="tensorrt",
            library=str(library),
            device=str(self._gpu.device),
            precision=choice.arithmetic,
            threads=0,
            slots=SLOTS,
            graph=choice.precision,
        )

    def _warm_up(self, scenario: Scenario, engine: ScenarioEngine, slot: Slot, *, capture: bool) -> None:
        """TensorRT finishes its own preparations in the first call, which therefore must not be the captured one."""
        stream = self._run.handle
        engine.bind(slot.device.address)
        engine.enqueue(stream)
        self._gpu.synchronize()
        if not capture:
            return
        try:
            if not engine.capturable(stream):
                raise BackendError("the library says that this engine cannot be captured")
            self._graphs[scenario, slot] = Graph.capture(self._run, lambda: engine.enqueue(stream))
        except BackendError as error:
            log.warning("%s runs kernel by kernel, not as a CUDA graph: %s", scenario, str(error))
            let_go(error)

    def launch(self, scenario: Scenario, inputs: Inputs) -> Slot:
        """Queue a tile on a free slot.

        Raises:
            BackendError: the inputs are not what the scenario reads, or the device failed.
        """
        for sensor in scenario.sensors:
            span, values = self._layout.inputs[sensor], inputs[sensor]
            if (values.dtype, values.shape) != (span.dtype, span.shape):
                raise BackendError(
                    f"scenario {scenario} takes {sensor} as {span.dtype} {list(span.shape)}, received {values.dtype} "
                    f"{list(values.shape)}"
                )
        slot = self._free.popleft()
        try:
            down, base = self._layout.download, slot.device.address
            for memory, offset in self._uploads(scenario, inputs, slot):
                self._gpu.upload(memory, base + offset, self._up)
            slot.uploaded.record(self._up)
            self._run.wait_for_event(slot.uploaded)
            graph = self._graphs.get((scenario, slot))
            if graph is not None:
                graph.launch(self._run)
            else:
                engine = self._engines[scenario]
                engine.bind(base)
                engine.enqueue(self._run.handle)
            slot.ran.record(self._run)
            self._down.wait_for_event(slot.ran)
            self._gpu.download(base + down.start, slot.host[down], self._down)
            slot.downloaded.record(self._down)
        except BaseException:
            self._free.append(slot)  # streams keep their order: what was queued ends before the slot's next tile
            raise
        return slot

    def _uploads(self, scenario: Scenario, inputs: Inputs, slot: Slot) -> list[tuple[NDArray[np.uint8], int]]:
        """Page-locked memory to send, and where to."""
        spans = {sensor: self._layout.inputs[sensor] for sensor in scenario.sensors}
        locked = {sensor: self._where_it_lies(inputs[sensor]) for sensor in spans}
        found = [(memory, spans[sensor].offset) for sensor, memory in locked.items() if memory is not None]
        if len(found) == len(spans):
            return found
        for sensor, span in spans.items():
            np.copyto(span.view(slot.host), inputs[sensor])
        up = self._layout.upload(scenario.sensors)
        return [(slot.host[up], up.start)]  # in one piece

    def _where_it_lies(self, values: NDArray[Any]) -> NDArray[np.uint8] | None:
        """An input's bytes if they are page-locked, from its third time on: a golden tile comes twice."""
        key = values.ctypes.data, values.nbytes
        if (found := self._locked.pop(key, None)) is not None:
            self._locked[key] = found  # the last to be dropped
            return found
        if len(self._seen) > MOST_LOCKED:  # arrays that never came again
            self._seen.clear()
        self._seen[key] += 1
        if not self._locks or self._seen[key] <= 2:
            return None
        try:
            found = self._gpu.register(values)
        except BackendError as error:
            log.info("inputs are copied before they are sent: %s", error)
            let_go(error)
            self._locks = False
            return None
        if len(self._locked) == MOST_LOCKED:  # the first is in no slot: these hold the inputs of few tiles
            del self._locked[next(iter(self._locked))]
        del self._seen[key]
        self._locked[key] = found
        return found

    def land(self, slot: Slot) -> Outputs:
        """Wait for a slot's tile and free the slot.

        Raises:
            BackendError: the device failed.
        """
        try:
            self._gpu.wait(slot.downloaded)
            return {name: self._layout.outputs[name].view(slot.host).copy() for name in self._layout.wanted}
        finally:
            self._free.append(slot)

    def close(self) -> None:
        """Free the device's memory; a device in trouble does it by itself when its context goes."""
        scratch = [self._scratch] if self._scratch else []
        steps: list[Callable[[], None]] = [self._gpu.synchronize]
        steps += [self._locked.clear]
        steps += [graph.free for graph in self._graphs.values()]
        steps += [self._drop_engines]
        steps += [memory.free for memory in (*(slot.device for slot in self._slots), *scratch)]
        told = False
        for step in steps:
            try:
                step()
            except BackendError as error:
                if not told:
                    log.warning("the device did not take its memory back: %s", str(error))
                told = True
        steps.clear()
        self._graphs.clear()
        self._free.clear()
        self._slots.clear()
        self._scratch = None
        del self._up, self._run, self._down

    def _drop_engines(self) -> None:
        while self._engines:
            self._engines.popitem()[1].close()


def let_go(error: BaseException) -> None:
    """Take an error's tracebacks away, after a note in the log: the error lives on in other threads.

    Their frames hold objects of the device, which must go in this thread while the device is current.
    """
    log.debug("%s", "".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
