"""TensorRT 10, TensorRT 11 and TensorRT-RTX behind one small class; nothing else in export imports them.

Their Python modules are one API, and everything here asks for the least of it. Precision is in the graph alone:
networks are strongly typed, and no precision flag, calibrator or weak typing is ever used. A plan runs in the version
that built it alone: a version-compatible one would need a lean runtime loaded beside it. What differs:

================  ======================  ======================  ==================================
                  TensorRT 10             TensorRT 11             TensorRT-RTX 1
================  ======================  ======================  ==================================
strong typing     creation flag           always; flag ignored    always; flag ignored
builds on         the target device       the target device       any machine, also without a GPU
is for            that device, or         as TensorRT 10          its compute capabilities from 8.0,
                  ``HardwareCompati-                              or those listed with
                  bilityLevel``                                   ``set_compute_capability``
timing cache      yes                     yes                     none (asks for a GPU, no effect)
another version   never                   never                   never
kernels           chosen in the build     chosen in the build     compiled on the device at load
================  ======================  ======================  ==================================

The level ``SAME_COMPUTE_CAPABILITY`` is missing in 10.3 (JetPack 6) and there in 10.16. The TensorRT-RTX column was
executed, version 1.7.1 on a machine without a GPU. The TensorRT columns never were: every name and signature used here
was compared with the Python bindings 10.3.0, 10.16.1 and 11.4.0, the rest follows NVIDIA's documentation.

Sources: https://docs.nvidia.com/deeplearning/tensorrt/latest/ (Engine Compatibility, Engine Inspector) and
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/ (CPU-Only AOT, Engine Compatibility).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from engine.contract.errors import BackendError, BackendUnavailableError, InterruptedRunError, UsageError
from engine.contract.formats import from_json
from engine.contract.plans import AMPERE, Library, PlanKey, Target
from export.built_layers import BuiltLayer, layers_of_inspector, layers_of_log
from export.trt_callbacks import Progress, logger_of, monitor_of
from export.trt_network import NetworkLayer, read_layers

log = logging.getLogger(__name__)

OLDEST_MAJOR = {"tensorrt": 10, "tensorrt_rtx": 1}
NUMPY_1_UNTIL = (10, 3)
"""The last ``tensorrt`` whose bindings are known to read a layer's weights through NumPy 1 alone: they are made with
pybind11's internals version 4; 10.16 and 11.4 have version 11."""
INSTALL = {
    "tensorrt": "pip install tensorrt (on a Jetson: part of JetPack)",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}
MIB = 1 << 20
PROBABILITIES = "probabilities"
"""The output that a plan may lack."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A parsed graph. Holds all that must outlive it."""

    trt: Any
    logger: Any
    builder: Any
    definition: Any
    parser: Any

    def layers(self) -> Iterator[NetworkLayer]:
        """See :func:`export.trt_network.read_layers`."""
        return read_layers(self.trt, self.definition)


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build yields."""

    plan: bytes
    layers: tuple[BuiltLayer, ...]
    """What the builder logged about the engine; empty if it said nothing."""
    timing_cache: bytes
    """Empty where the library has none."""


class TrtLibrary:
    """One of the three libraries, imported."""

    def __init__(self, name: Library) -> None:
        try:
            self._trt: Any = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: the wheel is there, a library that it loads is not
            raise BackendUnavailableError(f"{name} cannot be imported ({error}): {INSTALL[name]}") from error
        self.name: Library = name
        self.version: str = self._trt.__version__
        if int(self.version.split(".")[0]) < OLDEST_MAJOR[name]:
            raise BackendUnavailableError(
                f"{name} {OLDEST_MAJOR[name]} or later is needed (strongly typed networks), found {self.version}"
            )
        numpy_major = int(np.__version__.split(".")[0])
        if name == "tensorrt" and self._release[:2] <= NUMPY_1_UNTIL and numpy_major > 1:
            raise BackendUnavailableError(
                f"the Python bindings of tensorrt {self.version} need NumPy 1 to read weights, found NumPy "
                f"{np.__version__}: pip install 'numpy<2'"
            )

    @property
    def _release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split(".") if part.isdigit())

    @property
    def compute_capabilities(self) -> tuple[int, ...]:
        """Those that TensorRT-RTX can be told to build for; empty for TensorRT, which builds for its own device."""
        names = self._trt.ComputeCapability.__members__ if self.name == "tensorrt_rtx" else ()
        return tuple(sorted(int(name[2:]) for name in names if name.startswith("SM")))

    @property
    def needs_device(self) -> bool:
        """Whether plans can only be built on a machine with a GPU."""
        return self.name == "tensorrt"

    @property
    def has_timing_cache(self) -> bool:
        """Whether a build can start from the kernel times of an earlier one."""
        return self.name == "tensorrt"

    def parse(self, graph: Path, *, probabilities: bool = True) -> Network:
        """An ONNX file, with its external weights, as a strongly typed network.

        Args:
            graph: to read.
            probabilities: False leaves that output out, and all that only it needs.

        Raises:
            BackendUnavailableError: the library, or the driver under it, does not start.
            BackendError: the library does not understand the graph.
        """
        trt = self._trt
        logger = logger_of(trt)
        logger.clear()
        builder = self._started(trt.Builder, logger)
        definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(definition, logger)
        if not parser.parse_from_file(str(graph)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            found = [f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors]
            raise BackendError(
                f"{self.name} {self.version} cannot parse {graph}: {'; '.join(found) or 'no reason given'}"
            )
        outputs = [definition.get_output(index) for index in range(definition.num_outputs)]
        for output in outputs:
            if output.name == PROBABILITIES and not probabilities:
                definition.unmark_output(output)
        return Network(trt=trt, logger=logger, builder=builder, definition=definition, parser=parser)

    def _started(self, factory: Any, logger: Any) -> Any:
        """A ``Builder`` or ``Runtime``; the bindings raise TypeError for a null pointer and log the reason."""
        try:
            return factory(logger)
        except TypeError as error:
            raise BackendUnavailableError(
                f"{self.name} {self.version} does not start ({error}): {logger.reasons()}: check the driver with "
                "nvidia-smi (tegrastats on a Jetson)"
            ) from error

    def build(self, network: Network, key: PlanKey, *, progress: Progress, timing_cache: bytes = b"") -> Built:
        """The serialised engine that ``key`` describes; its name is ``key.stem``.

        Args:
            network: parsed from the graph of ``key``.
            key: target, batch sizes and options.
            progress: told of every phase.
            timing_cache: kernel times that an earlier build on this device measured; TensorRT only.

        Raises:
            UsageError: this library does not have an option that ``key`` asks for.
            BackendError: the library refuses; the message carries its own words.
            InterruptedRunError: ``progress`` stopped the build.
        """
        trt, definition = self._trt, network.definition
        network.logger.clear()
        definition.name = key.stem
        config = network.builder.create_builder_config()
        monitor = monitor_of(trt, progress)
        config.progress_monitor = monitor
        # So that the builder's log and the inspector tell what became of each layer; it changes nothing that runs.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # A graph that says float32 gets float32, not the 10-bit mantissa of TF32.
        config.clear_flag(trt.BuilderFlag.TF32)
        if self.name == "tensorrt_rtx":
            # Only such engines are sure to be capturable into a CUDA graph.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if key.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, key.workspace_mib * MIB)
        self._set_target(config, key.target)
        profile = network.builder.create_optimization_profile()
        for index in range(definition.num_inputs):
            tensor = definition.get_input(index)
            tile = tuple(tensor.shape)[1:]
            sizes = (key.batch.minimum, key.batch.optimum, key.batch.maximum)
            profile.set_shape(tensor.name, *((size, *tile) for size in sizes))
        config.add_optimization_profile(profile)
        if self.has_timing_cache:
            use_timing_cache(config, timing_cache)

        serialised = network.builder.build_serialized_network(definition, config)
        if serialised is None:
            if monitor.stopped:
                raise InterruptedRunError(f"the build of {key.stem} was stopped; nothing of it was written")
            raise BackendError(
                f"{self.name} {self.version} cannot build {key.scenario} in {key.precision} for {key.target}: "
                f"{network.logger.reasons()}"
            )
        measured = bytes(config.get_timing_cache().serialize()) if self.has_timing_cache else b""
        return Built(plan=bytes(serialised), layers=layers_of_log(network.logger.layers), timing_cache=measured)

    def inspect(self, plan: bytes) -> tuple[BuiltLayer, ...]:
        """What the library tells about an engine, layer by layer, for a batch of one. Needs a CUDA device.

        Raises:
            BackendUnavailableError: the library, or the driver under it, does not start.
            BackendError: the engine cannot be deserialised here, or says nothing.
        """
        trt = self._trt
        logger = logger_of(trt)
        logger.clear()
        runtime = self._started(trt.Runtime, logger)
        runtime.engine_host_code_allowed = False
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"{self.name} {self.version} cannot deserialise the plan: {logger.reasons()}")
        # Nothing runs, so it gets no memory; and a plan that requires the user's own would refuse any other context.
        own_memory = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.name == "tensorrt_rtx":
            configuration = engine.create_runtime_config()
            configuration.set_execution_context_allocation_strategy(own_memory)
            context = engine.create_execution_context(configuration)
        else:
            context = engine.create_execution_context(own_memory)
        if context is None:
            raise BackendError(f"{self.name} {self.version} cannot run the plan: {logger.reasons()}")
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT:
                # Without shapes the inspector answers "N/A due to dynamic shapes" instead of a type.
                context.set_input_shape(tensor, (1, *tuple(engine.get_tensor_shape(tensor))[1:]))
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        try:
            told = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
            return layers_of_inspector(from_json(told, dict[str, Any]))
        except (TypeError, ValueError) as error:
            raise BackendError(f"the inspector of {self.name} {self.version} gave no JSON: {error}") from error

    def _set_target(self, config: Any, target: Target) -> None:
        trt = self._trt
        if self.name == "tensorrt_rtx":
            if target.scope == "device":
                wanted = ["CURRENT"]
            else:
                wanted = [f"SM{capability}" for capability in target.compute_capabilities]
            known = trt.ComputeCapability.__members__
            unknown = [name for name in wanted if name not in known]
            if unknown:
                raise UsageError(
                    f"TensorRT-RTX {self.version} builds for the compute capabilities "
                    f"{', '.join(map(str, self.compute_capabilities))}; received "
                    f"{', '.join(name[2:] for name in unknown)}: list some of them, or take --target ampere+"
                )
            all_later = tuple(one for one in self.compute_capabilities if one >= AMPERE)
            if target.compute_capabilities != all_later:  # these are its default, and one kernel serves them all
                config.num_compute_capabilities = len(wanted)
                for index, name in enumerate(wanted):
                    config.set_compute_capability(known[name], index)
            return
        levels = trt.HardwareCompatibilityLevel.__members__
        level = {"device": "NONE", "capabilities": "SAME_COMPUTE_CAPABILITY", "ampere_and_later": "AMPERE_PLUS"}
        name = level[target.scope]
        if name not in levels:
            raise UsageError(
                f"TensorRT {self.version} has no hardware compatibility level {name}: take --target device"
            )
        config.hardware_compatibility_level = levels[name]


def use_timing_cache(config: Any, content: bytes) -> None:
    """Let a build start from kept kernel times, or from none where they are of another device, or not times at all."""
    known = config.create_timing_cache(content)
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
        log.warning("every kernel is timed again: the timing cache is of another device or release")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def open_library(name: str) -> TrtLibrary:
    """``tensorrt``, ``tensorrt_rtx``, or with ``auto`` the first of them that is installed.

    Raises:
        BackendUnavailableError: it is not installed, or too old.
    """
    if name != "auto":
        return TrtLibrary(next(known for known in get_args(Library) if known == name))
    refused = []
    for candidate in get_args(Library):
        try:
            return TrtLibrary(candidate)
        except BackendUnavailableError as error:
            refused.append(str(error))
    raise BackendUnavailableError(f"a TensorRT library is needed: {'; '.join(refused)}")
