"""CUDA for the TensorRT backend: the only user of pycuda.

pycuda (2026.1 at the time of writing) has no CUDA graphs; :class:`Graph` makes those six driver calls itself
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GRAPH.html).

The device's *primary* context is used, which is the one that the CUDA runtime inside TensorRT works in. pycuda lets an
object be destroyed only in the thread that made it, while the context is current there, and aborts the process when a
thread ends with a context on its stack. Hence the rule: one thread enters :class:`CudaDevice`, makes and drops
everything in it, leaves it, and ends.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import pycuda.driver as cuda  # type: ignore[import-not-found,import-untyped,unused-ignore]
from numpy.typing import NDArray

from engine.backends.layout import ALIGNMENT, aligned
from engine.contract.errors import BackendError, BackendUnavailableError
from engine.contract.plans import Device, power_mode

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: no implicit order with the default stream, which would also invalidate a capture."""
CAPTURE_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: CUDA calls of other threads do not disturb a capture."""

STICKY = frozenset({214, 219, 220, 700, 702, 709, 710, *range(714, 720)})
"""``CUresult`` codes after which the process can use the device no more: uncorrectable memory and link errors, illegal
addresses, instructions and addressing modes, assertions, time-outs and failed launches
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html)."""

Stream = Any
"""``pycuda.driver.Stream``"""
Event = Any
"""``pycuda.driver.Event``"""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Foreign failures as :class:`BackendError`; ``what`` completes "could not"."""
    try:
        yield
    except cuda.MemoryError as error:
        raise BackendError(
            f"the GPU could not {what}: {error}: free memory on it, or use `backend=openvino`"
        ) from error
    except cuda.Error as error:
        raise BackendError(f"the GPU could not {what}: {error}") from error


def first_device() -> Device:
    """The device that CUDA lists first (``CUDA_VISIBLE_DEVICES`` reorders them); makes no context.

    Raises:
        BackendUnavailableError: there is none, or the driver does not answer.
    """
    try:
        cuda.init()
        if cuda.Device.count() == 0:
            raise BackendUnavailableError("a CUDA device is needed, the driver lists none: use `backend=openvino`")
        device = cuda.Device(0)
        major, minor = device.compute_capability()
        return Device(
            name=device.name(),
            compute_capability=10 * major + minor,
            multiprocessors=device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT),
            power_mode=power_mode(),
        )
    except cuda.Error as error:
        raise BackendUnavailableError(
            f"a CUDA device is needed, and the driver says: {error}: check it with nvidia-smi (tegrastats on a "
            "Jetson), or use `backend=openvino`"
        ) from error


class CudaDevice:
    """The first device, current in the thread that enters; a context manager.

    Raises:
        BackendUnavailableError: there is no device.
        BackendError: a call of the driver failed.
    """

    def __init__(self) -> None:
        self.device = first_device()

    def __enter__(self) -> Self:
        with translated("be made current"):
            self._context = cuda.Device(0).retain_primary_context()
            self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the device, whatever state it is in; the thread cannot use it afterwards."""
        self._context.detach()  # unlike pop() it asks nothing of a driver that may have failed
        del self._context

    def stream(self) -> Stream:
        """A stream that waits for no other."""
        with translated("make a stream"):
            return cuda.Stream(NON_BLOCKING)

    def event(self) -> Event:
        """An event to order streams by; a thread that waits for it sleeps."""
        with translated("make an event"):
            return cuda.Event(cuda.event_flags.DISABLE_TIMING | cuda.event_flags.BLOCKING_SYNC)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Zeroed page-locked host memory, uint8 [nbytes]: what the device copies by itself while the host goes on."""
        with translated(f"pin {nbytes} bytes of host memory"):
            memory: NDArray[np.uint8] = cuda.pagelocked_empty(nbytes, np.uint8)
        memory[:] = 0
        return memory

    def register(self, memory: NDArray[Any]) -> NDArray[np.uint8]:
        """Page-lock memory that is there, C-contiguous, for as long as what is returned lives: its bytes, uint8.

        Drop it in the thread that owns the device.
        """
        with translated(f"page-lock {memory.nbytes} bytes of host memory"):
            locked: NDArray[np.uint8] = cuda.register_host_memory(memory.reshape(-1).view(np.uint8))
        return locked

    def upload(self, source: NDArray[np.uint8], address: int, stream: Stream) -> None:
        """Queue a copy of pinned ``source`` to ``address``."""
        with translated("copy to the device"):
            cuda.memcpy_htod_async(address, source, stream)

    def download(self, address: int, target: NDArray[np.uint8], stream: Stream) -> None:
        """Queue a copy from ``address`` to pinned ``target``."""
        with translated("copy from the device"):
            cuda.memcpy_dtoh_async(target, address, stream)

    def wait(self, event: Event) -> None:
        """Sleep until everything recorded before ``event`` is done; an error of the device shows here."""
        with translated("finish a tile"):
            event.synchronize()

    def synchronize(self) -> None:
        """Wait for everything."""
        with translated("finish its work"):
            cuda.Context.synchronize()

    def lost(self) -> int | None:
        """The code of a sticky error, which every call returns once it has happened; None while the device works.

        pycuda keeps the words of an error and not its code, so the driver is asked again.
        """
        code = Driver().code("cuCtxSynchronize")
        return code if code in STICKY else None

    def free_bytes(self) -> int:
        """Memory on the device that nobody has allocated, whoever else uses it included."""
        with translated("say how much memory is free"):
            return int(cuda.mem_get_info()[0])


class DeviceMemory:
    """Zeroed device memory on an aligned address; :meth:`free` it in the thread that made it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = aligned(max(nbytes, 1))
        with translated(f"allocate {self.nbytes} bytes"):
            self._allocation = cuda.mem_alloc(self.nbytes)
            self.address = int(self._allocation)
            cuda.memset_d8(self.address, 0, self.nbytes)
            cuda.Context.synchronize()  # the memset is on the default stream, which no stream of ours waits for
        assert self.address % ALIGNMENT == 0, "the driver aligns allocations to at least 256 bytes"

    def free(self) -> None:
        """Give it back."""
        with translated("free memory"):
            self._allocation.free()


class Graph:
    """Work captured from a stream, launched again with one call."""

    def __init__(self, driver: Driver, executable: ctypes.c_void_p) -> None:
        self._driver = driver
        self._executable = executable

    @classmethod
    def capture(cls, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` puts on ``stream``; nothing of it runs.

        Raises:
            BackendError: it cannot be captured; the stream is usable again.
        """
        driver = Driver()
        handle, captured, executable = ctypes.c_void_p(stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
        driver.call("cuStreamBeginCapture_v2", handle, ctypes.c_int(CAPTURE_THREAD_LOCAL))
        try:
            enqueue()
        except BaseException:
            driver.end_capture(handle, captured)
            raise
        driver.call("cuStreamEndCapture", handle, ctypes.byref(captured))
        try:
            driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), captured, ctypes.c_ulonglong(0))
        finally:
            driver.call("cuGraphDestroy", captured)
        return cls(driver, executable)

    def launch(self, stream: Stream) -> None:
        """Queue it all."""
        self._driver.call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def free(self) -> None:
        """Destroy it; none of it may be running."""
        self._driver.call("cuGraphExecDestroy", self._executable)


class Driver:
    """Calls of the CUDA driver that pycuda lacks."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL("libcuda.so.1")  # loaded already: pycuda links to it

    def code(self, function: str, *arguments: Any) -> int:
        """Call it; the ``CUresult`` it returns."""
        return int(getattr(self._library, function)(*arguments))

    def call(self, function: str, *arguments: Any) -> None:
        """Call it.

        Raises:
            BackendError: it returned anything but CUDA_SUCCESS.
        """
        code = self.code(function, *arguments)
        if code != 0:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(name))
            said = (name.value or b"unknown error").decode()
            raise BackendError(f"the GPU's driver refused {function}: {said} ({code})")

    def end_capture(self, stream: ctypes.c_void_p, captured: ctypes.c_void_p) -> None:
        """Leave capture mode after a failure, which invalidates what was captured; the cause is raised elsewhere."""
        if self._library.cuStreamEndCapture(stream, ctypes.byref(captured)) == 0 and captured:
            self._library.cuGraphDestroy(captured)
