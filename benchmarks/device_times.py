"""Upload, engine and download of one tile apart, by CUDA events on the device: H2D, GPU compute and D2H of trtexec.

trtexec calls the sum of the three the latency of one inference
(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/command-line-programs.html); copying a tile into pinned
memory, queueing and waking up are the host's and not in it. Never executed on a GPU so far, only on an emulated one.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import BackendInfo, Inputs, Output
from engine.backends.layout import TileLayout
from engine.backends.plan_choice import choose_plans
from engine.backends.tensorrt_engine import ScenarioEngine, TensorRt, import_library
from engine.contract.bundle import Bundle
from engine.contract.plan_cache import StoredPlan
from engine.contract.plans import Device, PlanHost
from engine.contract.sensors import Scenario

if TYPE_CHECKING:
    from engine.backends.device import CudaDevice  # imports pycuda

PARTS = ("h2d", "compute", "d2h")
WANTED = (Output.CLASSES, Output.CONFIDENCE)
BURN_IN = 10


def host_of(info: BackendInfo, device: Device) -> PlanHost:
    """The library that a TensorRT backend ran on, and the device."""
    name, version = info.library.split()
    return PlanHost(
        library="tensorrt" if name == "tensorrt" else "tensorrt_rtx", library_version=version, device=device
    )


def device_times(
    bundle: Bundle, info: BackendInfo, scenario: Scenario, inputs: Inputs, *, plans: Path | None, count: int
) -> Mapping[str, NDArray[np.float64]]:
    """Milliseconds of each of :data:`PARTS`, float64 [count], by the plan that the backend of ``info`` runs.

    Raises:
        BackendError: the library or the device failed.
        IntegrityError: the plan is damaged.
    """
    from engine.backends.device import first_device

    host = host_of(info, first_device())
    choice = choose_plans(bundle, [scenario], WANTED, info.graph, host, cache=plans)
    with ThreadPoolExecutor(1, "device") as thread:  # one thread makes and drops everything: see engine.backends.device
        return thread.submit(_measure, bundle, choice.plans[scenario], scenario, inputs, count).result()


def _measure(
    bundle: Bundle, plan: StoredPlan, scenario: Scenario, inputs: Inputs, count: int
) -> Mapping[str, NDArray[np.float64]]:
    from engine.backends.device import CudaDevice
    from engine.backends.tensorrt_pipeline import let_go

    with CudaDevice() as gpu:
        try:
            return _events(gpu, bundle, plan, scenario, inputs, count)
        except BaseException as error:
            let_go(error)
            raise


def _events(
    gpu: CudaDevice, bundle: Bundle, plan: StoredPlan, scenario: Scenario, inputs: Inputs, count: int
) -> Mapping[str, NDArray[np.float64]]:
    from engine.backends import device

    layout = TileLayout.of(bundle.manifest, WANTED)
    engine = ScenarioEngine(TensorRt(import_library(plan.record.key.library)), scenario, plan, layout)
    scratch, memory = device.DeviceMemory(engine.scratch_bytes), device.DeviceMemory(layout.device_bytes)
    graph = None
    try:
        host, stream = gpu.pinned(layout.host_bytes), gpu.stream()
        for sensor in scenario.sensors:
            np.copyto(layout.inputs[sensor].view(host), inputs[sensor])
        engine.use_scratch(scratch.address, scratch.nbytes)
        engine.bind(memory.address)
        engine.enqueue(stream.handle)  # its own preparations, which must not be captured
        gpu.synchronize()
        graph = device.Graph.capture(stream, lambda: engine.enqueue(stream.handle))
        up, down = layout.upload(scenario.sensors), layout.download
        cuda = device.cuda  # type: ignore[attr-defined]
        marks = [cuda.Event(cuda.event_flags.BLOCKING_SYNC) for _ in range(len(PARTS) + 1)]
        times_ms = np.empty((BURN_IN + count, len(PARTS)))
        for row in times_ms:
            with device.translated("time a tile"):
                marks[0].record(stream)
                gpu.upload(host[up], memory.address + up.start, stream)
                marks[1].record(stream)
                graph.launch(stream)
                marks[2].record(stream)
                gpu.download(memory.address + down.start, host[down], stream)
                marks[3].record(stream)
                marks[3].synchronize()
                row[:] = [marks[part].time_till(marks[part + 1]) for part in range(len(PARTS))]
        return dict(zip(PARTS, times_ms[BURN_IN:].T, strict=True))
    finally:
        gpu.synchronize()
        if graph is not None:
            graph.free()
        engine.close()
        for allocation in (scratch, memory):
            allocation.free()
