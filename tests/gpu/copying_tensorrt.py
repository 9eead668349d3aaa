"""A stand-in for TensorRT whose engines queue device copies: our whole backend runs on a real device without TensorRT.

An engine copies the first bytes of its last input to its outputs by way of its scratch memory, back and forth for some
milliseconds, so that a missing wait anywhere in the pipeline brings other bytes. ``arm`` makes the next run of an
engine write through a null pointer, which a real device answers with the sticky error 700.

Only the calls of :mod:`engine.backends` are here. The copies and the fault are calls of the CUDA driver itself.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.bundle import Bundle, Precision
from engine.contract.plan_cache import save_plan
from engine.contract.plans import BatchRange, Device, PlanAudit, PlanKey, Target, source_sha256
from engine.contract.sensors import Scenario, Sensor

VERSION = "0.0.copies"
PRECISION: Precision = "fp32"
TRESPASS = rb"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry trespass()
{
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 0;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""
"""A kernel in PTX, which the driver compiles for the device (https://docs.nvidia.com/cuda/parallel-thread-execution)."""


class Driver:
    """The calls of the CUDA driver that the stand-in makes; each returns without waiting for the device."""

    def __init__(self) -> None:
        self._cuda: Any = ctypes.CDLL("libcuda.so.1")

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy on the device."""
        address = ctypes.c_uint64
        self._call(
            "cuMemcpyDtoDAsync_v2", address(target), address(source), ctypes.c_size_t(nbytes), ctypes.c_void_p(stream)
        )

    def trespass(self, stream: int) -> None:
        """Queue a kernel that writes to address 0."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(TRESPASS))
        self._call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"trespass"))
        sizes = [ctypes.c_uint(size) for size in (1, 1, 1, 1, 1, 1, 0)]  # grid, block, shared bytes
        self._call("cuLaunchKernel", function, *sizes, ctypes.c_void_p(stream), None, None)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._cuda, function)(*arguments)
        if code:
            raise RuntimeError(f"{function} returned CUresult {code}")


class CopyingTensorRt(types.ModuleType):
    """``import tensorrt`` as far as our backend uses it.

    Args:
        tile_px: side of the tiles.
        scratch_bytes: memory that each engine asks for.
        rounds: how often an engine copies half of its scratch memory to the other half and back.
    """

    def __init__(self, tile_px: int, *, scratch_bytes: int, rounds: int) -> None:
        super().__init__("tensorrt")
        self.__version__ = VERSION
        self.armed = False
        self.TensorIOMode = IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
        self.ProfilingVerbosity = IntEnum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED", start=0)
        strategies = "STATIC ON_PROFILE_CHANGE USER_MANAGED"
        self.ExecutionContextAllocationStrategy = IntEnum("ExecutionContextAllocationStrategy", strategies, start=0)
        self.nptype = np.dtype
        driver, module = Driver(), self

        class ILogger:
            Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)

        class Context:
            def __init__(self, engine: Engine) -> None:
                self._engine, self._addresses, self._scratch = engine, dict[str, int](), 0
                self.nvtx_verbosity: Any = None

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                return shape == (1, *self._engine.shape(name))

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (1, *self._engine.shape(name))

            def set_device_memory(self, memory: int, size: int) -> None:
                assert size >= scratch_bytes
                self._scratch = memory

            def set_tensor_address(self, name: str, memory: int) -> bool:
                self._addresses[name] = memory
                return name in self._engine.names

            def execute_async_v3(self, stream: int) -> bool:
                if module.armed:
                    module.armed = False
                    driver.trespass(stream)
                area, half = tile_px * tile_px, scratch_bytes // 2
                driver.copy(self._scratch, self._addresses[self._engine.inputs[-1]], area, stream)
                for _ in range(rounds):
                    driver.copy(self._scratch + half, self._scratch, half, stream)
                    driver.copy(self._scratch, self._scratch + half, half, stream)
                for name in ("classes", "confidence"):
                    driver.copy(self._addresses[name], self._scratch, area, stream)
                return True

        class Engine:
            device_memory_size_v2 = scratch_bytes

            def __init__(self, plan: bytes) -> None:
                scenario, self.name = plan.decode().split()
                self.inputs = inputs_of(Scenario(scenario))
                self.names = (*self.inputs, "classes", "confidence")
                self.num_io_tensors = len(self.names)

            def shape(self, name: str) -> tuple[int, ...]:
                bands = {"rgir": (3,), "ndsm": (1,)}.get(name, ())
                return (*bands, tile_px, tile_px)

            def get_tensor_name(self, index: int) -> str:
                return self.names[index]

            def get_tensor_mode(self, name: str) -> IntEnum:
                modes: Any = module.TensorIOMode
                return modes.INPUT if name in self.inputs else modes.OUTPUT

            def get_tensor_dtype(self, name: str) -> type[np.generic]:
                return np.float32 if name == "ndsm" else np.uint8

            def create_execution_context(self, _strategy: IntEnum) -> Context:
                return Context(self)

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                pass

            def deserialize_cuda_engine(self, plan: bytes) -> Engine:
                return Engine(plan)

        self.ILogger, self.Runtime = ILogger, Runtime

    def arm(self) -> None:
        """Let the next run of an engine, kernel by kernel, trespass."""
        self.armed = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """In the place of both libraries."""
        before = {name: sys.modules.get(name) for name in ("tensorrt", "tensorrt_rtx")}
        sys.modules.update({"tensorrt": self, "tensorrt_rtx": None})  # type: ignore[dict-item]
        try:
            yield
        finally:
            for name, module in before.items():
                sys.modules.pop(name)
                if module is not None:
                    sys.modules[name] = module


def inputs_of(scenario: Scenario) -> tuple[str, ...]:
    """Names of the tensors that an engine of the scenario reads."""
    return tuple(sensor.value for sensor in Sensor if sensor in scenario.sensors)


def answer_to(scenario: Scenario, tile: dict[Sensor, NDArray[Any]]) -> NDArray[np.uint8]:
    """What an engine answers, uint8 [T, T]."""
    values = tile[Sensor(inputs_of(scenario)[-1])]
    area = values.shape[-1] ** 2
    return values.view(np.uint8).ravel()[:area].reshape(values.shape[-2:])


def save_plans(bundle: Bundle, folder: Path, device: Device) -> None:
    """What ``python -m export.build`` would leave, for the stand-in."""
    for scenario in Scenario:
        key = PlanKey(
            scenario=scenario,
            precision=PRECISION,
            source_sha256=source_sha256(bundle, scenario, PRECISION),
            library="tensorrt",
            library_version=VERSION,
            target=Target.of(device),
            batch=BatchRange(minimum=1, optimum=1, maximum=1),
        )
        none = PlanAudit(macs=1, mac_share={PRECISION: 1.0}, layers=0, fallbacks=(), casts=0, weights_bytes=0)
        save_plan(folder, key, f"{scenario} {key.stem}".encode(), audit=none, build_s=0.0)
