"""TensorRT 10, TensorRT 11 and TensorRT-RTX behind one small class: from a verified plan to enqueued work.

They differ here in one thing. TensorRT-RTX compiles kernels when a context is made and when it first runs, keeps them
in a *runtime cache*, and takes its settings from a runtime configuration; there the cache is kept beside the plan.
Names and signatures: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/Engine.html
and https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/python-api/infer/Core/RuntimeConfig.html.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.backends.base import Output
from engine.backends.layout import Span, TileLayout
from engine.backends.plan_choice import BATCH
from engine.contract.errors import BackendError, BackendUnavailableError, IntegrityError, one_line
from engine.contract.plan_cache import StoredPlan, load_hint, save_hint
from engine.contract.plans import Library
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)

CACHE_SUFFIX = ".runtime_cache"
AGAIN = "kernels are compiled again"
NOT_KEPT = "compiled kernels are not kept, the next start takes as long"
MESSAGES = 3
"""How many of a library's errors an exception repeats."""
INSTALL: Mapping[Library, str] = {
    "tensorrt": "pip install tensorrt (on a Jetson it is part of JetPack)",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}


def import_library(name: Library) -> ModuleType:
    """``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        BackendUnavailableError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: the wheel is there, a library that it loads is not
        raise BackendUnavailableError(f"{name} cannot be imported ({error}): {INSTALL[name]}") from error


class TensorRt:
    """A library's runtime and its messages. Lives and dies in the thread in which the device is current."""

    def __init__(self, module: ModuleType) -> None:
        self.module: Any = module
        logger = _logger(module)
        self._messages: list[str] = logger.messages
        self._messages.clear()
        try:
            self._runtime: Any = module.Runtime(logger)
        except TypeError as error:  # what the bindings raise for a null pointer; the reason is in the log
            raise BackendUnavailableError(
                f"{self} does not start on this device ({error}){self.complaints()}: check the driver with nvidia-smi "
                "(tegrastats on a Jetson), or use `backend=openvino`"
            ) from error
        # A plan may carry a runtime of its own as host code; it would run with the rights of this process.
        self._runtime.engine_host_code_allowed = False

    def __str__(self) -> str:
        return f"{self.module.__name__} {self.module.__version__}"

    def complaints(self) -> str:
        """The errors it logged since the last call, as the end of a sentence; the first ones, which name the cause."""
        messages = "; ".join(self._messages[:MESSAGES])
        self._messages.clear()
        return f": {messages}" if messages else ""

    def deserialise(self, plan: StoredPlan) -> Any:
        """The engine of a plan, as ``ICudaEngine``, after its size and hash have been verified.

        Raises:
            IntegrityError: the file is damaged, or another engine than its record says.
            BackendUnavailableError: the library refuses it on this device.
        """
        content = plan.read()
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendUnavailableError(
                f"{plan.path}: {self} does not load it on this device{self._why_invalid(content)}"
                f"{self.complaints()}: build it on this machine with `python -m export.build`"
            )
        if engine.name != plan.record.key.stem:
            raise IntegrityError(
                f"{plan.path}: the engine in it is named {engine.name!r}: build it again with "
                "`python -m export.build --force`"
            )
        return engine

    def _why_invalid(self, content: bytes) -> str:
        """TensorRT-RTX knows reasons, as a set of bits."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return ""
        _, bits = self._runtime.get_engine_validity(content)
        reasons = [name for name, bit in self.module.EngineInvalidityDiagnostics.__members__.items() if bits & int(bit)]
        return f" ({', '.join(reasons)})" if reasons else ""


class ScenarioEngine:
    """One scenario's engine and its only execution context, for one tile at a time.

    Raises:
        IntegrityError: the plan is damaged or holds another graph.
        BackendUnavailableError: the library refuses the plan.
        BackendError: it refuses the tile's shape.
    """

    def __init__(self, library: TensorRt, scenario: Scenario, plan: StoredPlan, layout: TileLayout) -> None:
        self._library, self._plan = library, plan
        trt = library.module
        self._engine = library.deserialise(plan)
        self._spans: dict[str, Span] = {str(sensor): layout.inputs[sensor] for sensor in scenario.sensors}
        inputs = set(self._spans)
        self._spans.update(
            {
                str(output): span
                for output, span in layout.outputs.items()
                if output is not Output.PROBABILITIES or plan.record.key.probabilities
            }
        )
        self._check_tensors(trt, inputs)
        self._configuration: Any = None
        self._cache: Any = None
        if plan.record.key.library == "tensorrt_rtx":
            self._configure_rtx(trt)
            self._context = self._engine.create_execution_context(self._configuration)
        else:
            self._context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise BackendError(f"{library} made no execution context for {plan.path}{library.complaints()}")
        # Plans are built with detailed profiling verbosity; marking each kernel for a profiler costs time on each tile.
        self._context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        for name in inputs:
            self._demand(self._context.set_input_shape(name, (BATCH, *self._spans[name].shape)), f"the shape of {name}")
        for name, span in self._spans.items():
            shape = tuple(self._context.get_tensor_shape(name))
            self._demand(shape == (BATCH, *span.shape), f"tiles of {span.shape} for {name}, it has {shape}")

    @property
    def scratch_bytes(self) -> int:
        """Device memory it needs while it runs."""
        return int(self._engine.device_memory_size_v2)

    def use_scratch(self, address: int, nbytes: int) -> None:
        """Run in this memory, which other engines use as well: no two of them may run at a time."""
        self._context.set_device_memory(address, nbytes)

    def bind(self, base: int) -> None:
        """Read and write the tile whose memory begins at ``base``."""
        for name, span in self._spans.items():
            self._demand(self._context.set_tensor_address(name, base + span.offset), f"an address for {name}")

    def enqueue(self, stream: int) -> None:
        """Queue the graph on a stream, given by its handle."""
        self._demand(self._context.execute_async_v3(stream), "to run")

    def capturable(self, stream: int) -> bool:
        """Whether :meth:`enqueue` may be captured; TensorRT has no way to ask and answers when it is tried."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def close(self) -> None:
        """Drop the context before what it was made of."""
        self._context = None
        self._configuration = self._cache = None
        self._engine = None

    def _load_runtime_cache(self) -> None:
        content = load_hint(self._cache_path, AGAIN)
        try:
            fits = not content or self._cache.deserialize(content)
        except Exception as error:  # whatever the bindings raise: it only saves time
            log.warning("%s: %s cannot be loaded (%s)", AGAIN, self._cache_path, one_line(error))
            return
        if not fits:
            log.info("%s: %s is of another driver, device or release", AGAIN, self._cache_path)

    def save_runtime_cache(self) -> None:
        """Keep what TensorRT-RTX compiled, so that the next start need not."""
        if self._cache is None:
            return
        try:
            content = bytes(self._cache.serialize())
        except Exception as error:  # a null pointer, or whatever the bindings raise
            log.warning("%s: the library does not give them (%s)", NOT_KEPT, one_line(error))
            return
        save_hint(self._cache_path, content, NOT_KEPT)

    @property
    def _cache_path(self) -> Path:
        return self._plan.path.with_suffix(CACHE_SUFFIX)

    def _configure_rtx(self, trt: Any) -> None:
        configuration = self._configuration = self._engine.create_runtime_config()
        configuration.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # The default compiles kernels for the actual shape in the background, after the graph has been captured.
        strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        configuration.dynamic_shapes_kernel_specialization_strategy = strategy
        self._cache = configuration.create_runtime_cache()
        self._load_runtime_cache()
        configuration.set_runtime_cache(self._cache)

    def _check_tensors(self, trt: Any, inputs: set[str]) -> None:
        engine = self._engine
        found = {engine.get_tensor_name(index): index for index in range(engine.num_io_tensors)}
        if set(found) != set(self._spans):
            raise IntegrityError(
                f"{self._plan.path}: this scenario has the tensors {', '.join(sorted(self._spans))}, the engine has "
                f"{', '.join(sorted(found))}: build it again with `python -m export.build --force`"
            )
        for name, span in self._spans.items():
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            dtype = trt.nptype(engine.get_tensor_dtype(name))
            if is_input != (name in inputs) or dtype != span.dtype:
                raise IntegrityError(
                    f"{self._plan.path}: {name} must be an {'in' if name in inputs else 'out'}put of {span.dtype}, the "
                    f"engine has it as an {'in' if is_input else 'out'}put of {dtype}: export the bundle again"
                )

    def _demand(self, granted: bool, what: str) -> None:
        if not granted:
            raise BackendError(f"{self._library} refused {what} ({self._plan.path}){self._library.complaints()}")


@functools.cache
def _logger(module: Any) -> Any:
    """A logger of the library that keeps errors in ``messages`` for the exception that follows them.

    One per library, and never freed: TensorRT registers the first logger it meets for the whole process and goes on
    calling it when the objects it was given for are long gone.
    """
    severity = module.ILogger.Severity

    class Messages(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.messages.append(message.strip())
            elif level == severity.WARNING:
                log.info("%s: %s", module.__name__, message)

    return Messages()
