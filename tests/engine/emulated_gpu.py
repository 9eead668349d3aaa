"""A CUDA driver, pycuda and TensorRT in numpy, as unhelpful as the real ones are allowed to be.

Work on a stream does not run before something waits for it, and then only what that depends on. A copy that nobody
ordered behind the engine it reads from therefore brings old bytes every time, not once a week. Objects must be made,
used and dropped in a thread in which the context is current, all memory must be given back, and a thread must not end
with a context on its stack: :meth:`Gpu.complaints` tells.

Only what :mod:`engine.backends` uses is here, with pycuda's and TensorRT's own names and signatures.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.contract.sensors import Scenario, Sensor
from tests.conftest import CLASSES, toy_probabilities

FIRST_ADDRESS = 0x7F_0000_0000
LIBRARY = "libcuda.so.1"
INVALIDATED = 901
ILLEGAL_ADDRESS = 700


class CudaError(Exception):
    """``pycuda.driver.Error``."""


def _nothing() -> None:
    pass


@dataclass(eq=False)
class Work:
    """Something queued, and what must have run before."""

    run: Callable[[], None]
    after: list[Work]
    done: bool = False

    def force(self) -> None:
        if self.done:
            return
        for earlier in self.after:
            earlier.force()
        self.run()
        self.done = True
        self.run, self.after = _nothing, []


@dataclass(eq=False)
class Plan:
    """What the bytes of an emulated plan say."""

    name: str
    scenario: Scenario
    tile_px: int
    tensors: tuple[str, ...] = ()
    probabilities: bool = True
    scratch_bytes: int = 1000

    def encode(self) -> bytes:
        return b"plan" + msgspec.json.encode(vars(self))


@dataclass(eq=False)
class Gpu:
    """The device, and everything the code under test did wrong with it."""

    name: str = "Emulated GPU"
    capability: tuple[int, int] = (8, 7)
    multiprocessors: int = 16
    devices: int = 1
    lazy: bool = True
    capturable: bool = True
    memory: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    graphs: dict[int, list[Callable[[], None]] | None] = field(default_factory=dict)
    streams: weakref.WeakValueDictionary[int, Any] = field(default_factory=weakref.WeakValueDictionary)
    stacks: dict[int, list[Any]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)
    fail_next: str | None = None
    """Name of the driver call that fails once."""
    fail_code: int = 0
    """What the failure leaves behind: a sticky error, which every later call returns."""
    sticky: int = 0
    starts: bool = True
    """Whether a TensorRT library can start."""
    context_scratch: dict[int, int] = field(default_factory=dict)
    next_handle: int = 1
    alive: dict[int, tuple[int, str]] = field(default_factory=dict)

    locked: list[tuple[int, int]] = field(default_factory=list)
    """First and end address of page-locked memory."""
    registered: int = 0
    """How often memory was page-locked where it lay."""

    def lock(self, memory: NDArray[Any]) -> tuple[int, int]:
        place = memory.ctypes.data, memory.ctypes.data + memory.nbytes
        self.locked.append(place)
        return place

    def is_locked(self, memory: NDArray[Any]) -> bool:
        first, end = memory.ctypes.data, memory.ctypes.data + memory.nbytes
        return any(low <= first and end <= high for low, high in self.locked)

    def handle(self) -> int:
        self.next_handle += 1
        return self.next_handle

    def current(self, what: str) -> None:
        """Every call needs the context."""
        if not self.stacks.get(threading.get_ident()):
            self.wrong.append(f"{what} without a current context in thread {threading.current_thread().name}")
        if self.sticky:
            raise CudaError(f"{what} failed: an illegal memory access was encountered")
        if self.fail_next == what:
            self.fail_next, self.sticky = None, self.fail_code
            raise CudaError(f"{what} failed: emulated failure")

    def made(self, thing: object) -> None:
        """A thing that must be gone before the context is."""
        self.alive[id(thing)] = (threading.get_ident(), type(thing).__name__)

    def dropped(self, thing: object) -> None:
        """Called when Python destroys it; it was never made if its constructor failed."""
        thread, name = self.alive.pop(id(thing), (None, ""))
        if thread is not None and not (thread == threading.get_ident() and self.stacks.get(thread)):
            self.wrong.append(f"{name} dropped outside its context")

    def at(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        for base, content in self.memory.items():
            if base <= address and address + nbytes <= base + content.size:
                return content[address - base : address - base + nbytes]
        raise CudaError(f"illegal address {address:#x} + {nbytes}")

    def complaints(self) -> list[str]:
        """After everything has been closed: what is left, and what was wrong. A lost device takes nothing back."""
        if self.sticky:
            return self.wrong
        left = [f"{len(self.memory)} allocations are left"] if self.memory else []
        left += [f"{len(self.graphs)} graphs are left"] if self.graphs else []
        left += [f"a context is left in thread {thread}" for thread, stack in self.stacks.items() if stack]
        return self.wrong + left


def make_pycuda(gpu: Gpu) -> types.ModuleType:
    """``pycuda.driver``."""
    driver: Any = types.ModuleType("pycuda.driver")
    driver.Error = CudaError
    for name in ("MemoryError", "LogicError", "LaunchError", "RuntimeError"):
        setattr(driver, name, type(name, (CudaError,), {}))

    class Owned:
        """Checks where it is made and dropped."""

        def __init__(self) -> None:
            gpu.current(type(self).__name__)
            gpu.made(self)

        def __del__(self) -> None:
            gpu.dropped(self)

    class Stream(Owned):
        def __init__(self, flags: int = 0) -> None:
            super().__init__()
            assert flags == 1, "streams must not wait for the default stream"
            self.handle = gpu.handle()
            self.tail = Work(run=_nothing, after=[], done=True)
            self.captured: list[Callable[[], None]] | None = None
            gpu.streams[self.handle] = self

        def queue(self, run: Callable[[], None], after: tuple[Work, ...] = ()) -> None:
            if self.captured is not None:
                self.captured.append(run)
                return
            self.tail = Work(run=run, after=[self.tail, *after])
            if not gpu.lazy:
                self.tail.force()

        def wait_for_event(self, event: Event) -> None:
            gpu.current("wait_for_event")
            self.queue(_nothing, (event.work,))

    class Event(Owned):
        def __init__(self, flags: int = 0) -> None:
            super().__init__()
            self.work = Work(run=_nothing, after=[], done=True)

        def record(self, stream: Stream) -> Event:
            gpu.current("record")
            self.work = stream.tail
            return self

        def synchronize(self) -> Event:
            gpu.current("synchronize")
            self.work.force()
            gpu.current("the end of synchronize")
            return self

    class DeviceAllocation(Owned):
        def __init__(self, nbytes: int) -> None:
            super().__init__()
            self._address = FIRST_ADDRESS + 512 * gpu.handle() * 2**20
            gpu.memory[self._address] = np.full(nbytes, 0xAB, np.uint8)

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            gpu.current("free")
            del gpu.memory[self._address]

        def __del__(self) -> None:
            super().__del__()
            gpu.memory.pop(getattr(self, "_address", 0), None)  # pycuda's own does so too

    class Context:
        def push(self) -> None:
            gpu.stacks.setdefault(threading.get_ident(), []).append(self)

        def detach(self) -> None:
            mine = [name for thread, name in gpu.alive.values() if thread == threading.get_ident()]
            if mine:
                gpu.wrong.append(f"{', '.join(mine)} outlive the context")
            gpu.stacks[threading.get_ident()].remove(self)

        @staticmethod
        def synchronize() -> None:
            gpu.current("Context.synchronize")
            for stream in list(gpu.streams.values()):
                stream.tail.force()

    class Device:
        def __init__(self, ordinal: int) -> None:
            assert ordinal == 0

        @staticmethod
        def count() -> int:
            return gpu.devices

        def name(self) -> str:
            return gpu.name

        def compute_capability(self) -> tuple[int, int]:
            return gpu.capability

        def get_attribute(self, attribute: DeviceAttribute) -> int:
            assert attribute == DeviceAttribute.MULTIPROCESSOR_COUNT
            return gpu.multiprocessors

        def retain_primary_context(self) -> Context:
            return Context()

    class DeviceAttribute(IntEnum):
        MULTIPROCESSOR_COUNT = 16

    class EventFlags(IntEnum):
        BLOCKING_SYNC = 1
        DISABLE_TIMING = 2

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> NDArray[Any]:
        gpu.current("pagelocked_empty")
        memory = np.full(shape, 0xCD, dtype)
        gpu.lock(memory)
        return memory

    class Registered(np.ndarray):
        """Memory of somebody else, page-locked until this goes."""

        def __del__(self) -> None:
            if hasattr(self, "registration"):
                gpu.locked.remove(self.registration)

    class Registration(Owned):
        pass

    def register_host_memory(ary: NDArray[Any], flags: int = 0) -> NDArray[Any]:
        gpu.current("register_host_memory")
        assert ary.flags.c_contiguous
        locked = ary.view(Registered)
        locked.owner = Registration()
        locked.registration = gpu.lock(ary)
        gpu.registered += 1
        return locked

    def memset_d8(dest: int, data: int, size: int) -> None:
        gpu.current("memset_d8")
        gpu.at(dest, size)[:] = data

    def memcpy_htod_async(dest: int, src: NDArray[np.uint8], stream: Stream) -> None:
        gpu.current("memcpy_htod_async")
        if not gpu.is_locked(src):
            gpu.wrong.append("an asynchronous copy from memory that is not page-locked")
        stream.queue(lambda: np.copyto(gpu.at(dest, src.nbytes), src))

    def memcpy_dtoh_async(dest: NDArray[np.uint8], src: int, stream: Stream) -> None:
        gpu.current("memcpy_dtoh_async")
        stream.queue(lambda: np.copyto(dest, gpu.at(src, dest.nbytes)))

    def init(flags: int = 0) -> None:
        if gpu.fail_next == "init":
            gpu.fail_next = None
            raise CudaError("cuInit failed: no CUDA-capable device is detected")

    driver.mem_get_info = lambda: (2**30 - sum(content.size for content in gpu.memory.values()), 2**30)
    driver.mem_alloc = DeviceAllocation
    driver.event_flags = EventFlags
    driver.device_attribute = DeviceAttribute
    for thing in (
        Stream,
        Event,
        Context,
        Device,
        pagelocked_empty,
        register_host_memory,
        memset_d8,
        memcpy_htod_async,
        memcpy_dtoh_async,
    ):
        setattr(driver, thing.__name__, thing)
    driver.init = init
    return driver


class LibCuda:
    """The calls of ``libcuda.so.1`` that pycuda lacks, by ctypes' conventions."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: ctypes.c_int) -> int:  # noqa: N802
        self._gpu.current("cuStreamBeginCapture_v2")
        assert mode.value == 1
        self._gpu.streams[stream.value].captured = []
        return 0

    def cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> int:  # noqa: N802
        queue = self._gpu.streams[stream.value]
        captured, queue.captured = queue.captured, None
        if captured is None or not self._gpu.capturable:
            return INVALIDATED
        graph._obj.value = self._gpu.handle()
        self._gpu.graphs[graph._obj.value] = captured
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: ctypes.c_void_p, flags: Any) -> int:  # noqa: N802
        executable._obj.value = self._gpu.handle()
        self._gpu.graphs[executable._obj.value] = self._gpu.graphs[graph.value]
        return 0

    def cuGraphLaunch(self, executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:  # noqa: N802
        self._gpu.current("cuGraphLaunch")
        self._gpu.launches.append("graph")
        for run in self._gpu.graphs[executable.value] or ():
            self._gpu.streams[stream.value].queue(run)
        return 0

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:  # noqa: N802
        del self._gpu.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy  # noqa: N815

    def cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> int:  # noqa: N802
        gpu = self._gpu
        gpu.current("cuMemcpyDtoDAsync_v2")
        gpu.streams[stream.value].queue(
            lambda: np.copyto(gpu.at(target.value, nbytes.value), gpu.at(source.value, nbytes.value))
        )
        return 0

    def cuModuleLoadData(self, module: Any, image: Any) -> int:  # noqa: N802
        assert b".entry trespass" in image.value
        module._obj.value = self._gpu.handle()
        return 0

    def cuModuleGetFunction(self, function: Any, _module: Any, name: Any) -> int:  # noqa: N802
        assert name.value == b"trespass"
        function._obj.value = self._gpu.handle()
        return 0

    def cuLaunchKernel(self, _function: Any, *arguments: Any) -> int:  # noqa: N802
        def trespass() -> None:
            self._gpu.sticky = ILLEGAL_ADDRESS

        *_sizes, stream, _parameters, _extra = arguments
        self._gpu.streams[stream.value].queue(trespass)
        return 0

    def cuCtxSynchronize(self) -> int:  # noqa: N802
        if not self._gpu.sticky:
            for stream in list(self._gpu.streams.values()):
                stream.tail.force()
        return self._gpu.sticky

    def cuGetErrorName(self, code: int, name: Any) -> int:  # noqa: N802
        name._obj.value = {INVALIDATED: b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}.get(code, b"CUDA_ERROR_UNKNOWN")
        return 0


def make_tensorrt(gpu: Gpu, name: str, version: str) -> types.ModuleType:
    """``tensorrt`` or ``tensorrt_rtx``, for plans that are an encoded :class:`Plan`."""
    trt: Any = types.ModuleType(name)
    trt.__version__ = version

    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        def log(self, severity: Severity, msg: str) -> None:
            raise NotImplementedError

    ILogger.Severity = Severity  # type: ignore[attr-defined]

    class TensorIOMode(IntEnum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class Strategy(IntEnum):
        STATIC = 0
        ON_PROFILE_CHANGE = 1
        USER_MANAGED = 2

    class Verbosity(IntEnum):
        LAYER_NAMES_ONLY = 0
        NONE = 1
        DETAILED = 2

    class Specialization(IntEnum):
        LAZY = 0
        EAGER = 1

    class Diagnostics(IntEnum):
        VERSION_MISMATCH = 1
        UNSUPPORTED_CC = 2
        MALFORMED_ENGINE = 32

    class Cache:
        content = b""

        def deserialize(self, blob: bytes) -> bool:
            if not blob.startswith(b"cache of " + gpu.name.encode()):
                return False
            self.content = bytes(blob)
            return True

        def serialize(self) -> bytes:
            return self.content

    class Configuration:
        strategy = Strategy.STATIC
        cache: Cache | None = None
        dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY

        def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> bool:
            self.cache = cache
            return True

    class Context:
        def __init__(self, engine: Engine, configuration: Any) -> None:
            gpu.current("create_execution_context")
            gpu.made(self)
            self._engine, self._cache = engine, None
            if isinstance(configuration, Configuration):
                assert configuration.dynamic_shapes_kernel_specialization_strategy == Specialization.EAGER
                self._cache, configuration = configuration.cache, configuration.strategy
            assert configuration == Strategy.USER_MANAGED
            self.nvtx_verbosity = Verbosity.DETAILED
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._scratch = 0

        def __del__(self) -> None:
            gpu.dropped(self)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            if shape != (1, *self._engine.shape(name)):
                return False
            self._shapes[name] = shape
            return True

        def get_tensor_shape(self, name: str) -> list[int]:
            return [1, *self._engine.shape(name)]

        def set_device_memory(self, memory: int, size: int) -> None:
            assert memory % 256 == 0
            assert size >= self._engine.device_memory_size_v2
            gpu.at(memory, size)
            self._scratch = memory

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert memory % 256 == 0
            self._addresses[name] = memory
            return name in self._engine.names

        def execute_async_v3(self, stream_handle: int) -> bool:
            gpu.current("execute_async_v3")
            assert self.nvtx_verbosity == Verbosity.NONE
            owner = gpu.context_scratch.setdefault(self._scratch, stream_handle)
            assert owner == stream_handle, "engines that share scratch memory must share a stream"
            addresses = dict(self._addresses)
            gpu.streams[stream_handle].queue(lambda: self._run(addresses))
            if gpu.streams[stream_handle].captured is None:
                gpu.launches.append("plain")
            if self._cache is not None:
                self._cache.content = b"cache of " + gpu.name.encode()
            return True

        def _run(self, addresses: dict[str, int]) -> None:
            def tensor(name: str) -> NDArray[Any]:
                shape, dtype = self._engine.shape(name), self._engine.dtype(name)
                nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
                return gpu.at(addresses[name], nbytes).view(dtype).reshape(shape)

            scenario = self._engine.plan.scenario
            answer = toy_probabilities(scenario, {sensor: tensor(sensor) for sensor in scenario.sensors}, 0)
            if "probabilities" in self._engine.names:
                tensor("probabilities")[:] = answer
            tensor("classes")[:] = answer.argmax(axis=0)
            tensor("confidence")[:] = np.rint(answer.max(axis=0) * 255)

    class Engine:
        def __init__(self, plan: Plan) -> None:
            self.plan, self.name = plan, plan.name
            outputs = ("classes", "confidence", *(["probabilities"] if plan.probabilities else []))
            self.names = plan.tensors or (*(s.value for s in Sensor if s in plan.scenario.sensors), *outputs)
            self.num_io_tensors = len(self.names)
            self.device_memory_size_v2 = plan.scratch_bytes

        def shape(self, name: str) -> tuple[int, ...]:
            bands = {"rgir": (3,), "ndsm": (1,), "probabilities": (CLASSES,)}.get(name, ())
            return (*bands, self.plan.tile_px, self.plan.tile_px)

        def dtype(self, name: str) -> type[np.generic]:
            return np.float32 if name in ("ndsm", "probabilities") else np.uint8

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in list(Sensor) else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> type[np.generic]:
            return self.dtype(name)

        def create_runtime_config(self) -> Configuration:
            assert name == "tensorrt_rtx", "TensorRT 10.3 has no runtime configuration"
            return Configuration()

        def create_execution_context(self, configuration: Any) -> Context:
            return Context(self, configuration)

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            gpu.current("Runtime")
            if not gpu.starts:
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            assert not self.engine_host_code_allowed
            if not serialized_engine.startswith(b"plan"):
                self._logger.log(Severity.ERROR, "the magic tag is not a plan's")
                return None
            return Engine(msgspec.json.decode(serialized_engine[4:], type=Plan))

    if name == "tensorrt_rtx":
        trt.EngineInvalidityDiagnostics = Diagnostics
        trt.IRuntimeCache = Cache
        Runtime.get_engine_validity = lambda self, buffer: (2, 2 | 32)  # type: ignore[attr-defined]
    trt.nptype = lambda dtype: dtype
    trt.ExecutionContextAllocationStrategy = Strategy
    trt.DynamicShapesKernelSpecializationStrategy = Specialization
    trt.ProfilingVerbosity = Verbosity
    trt.ILogger, trt.TensorIOMode, trt.Runtime = ILogger, TensorIOMode, Runtime
    return trt


@contextmanager
def installed(gpu: Gpu, libraries: dict[str, str]) -> Iterator[None]:
    """Put the emulation in the place of pycuda, libcuda and the TensorRT ``libraries`` (name -> version)."""
    package: Any = types.ModuleType("pycuda")
    package.driver = make_pycuda(gpu)
    emulated: dict[str, types.ModuleType | None] = {"pycuda": package, "pycuda.driver": package.driver}
    for name in ("tensorrt", "tensorrt_rtx"):
        emulated[name] = make_tensorrt(gpu, name, libraries[name]) if name in libraries else None
    real = ctypes.CDLL
    with pytest.MonkeyPatch.context() as patch:
        for name, module in emulated.items():
            patch.setitem(sys.modules, name, module)
        for name in ("device", "tensorrt", "tensorrt_engine", "tensorrt_pipeline"):
            patch.setitem(sys.modules, f"engine.backends.{name}", None)
            del sys.modules[f"engine.backends.{name}"]  # imported anew inside, forgotten afterwards
        patch.setattr(ctypes, "CDLL", lambda name, *a, **k: LibCuda(gpu) if name == LIBRARY else real(name, *a, **k))
        yield
