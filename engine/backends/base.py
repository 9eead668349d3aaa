"""The small interface behind which inference libraries live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from engine.contract.bundle import Precision
from engine.contract.sensors import Scenario, Sensor


class Output(StrEnum):
    """A graph output; the value is its name in the ONNX file."""

    CLASSES = "classes"
    """uint8 [T, T]: the most probable class."""
    CONFIDENCE = "confidence"
    """uint8 [T, T]: its probability x 255."""
    PROBABILITIES = "probabilities"
    """float32 [C, T, T]."""


Inputs = Mapping[Sensor, NDArray[np.generic]]
"""One tile in raw sensor units, as the scenario's graph reads it: ``rgir`` uint8 [3, T, T], ``ndsm`` float32 [1, T, T]
in metres, finite and C-contiguous."""

Outputs = Mapping[Output, NDArray[Any]]
"""The wanted outputs of one tile, owned by the receiver."""

ExecutionPrecision = Literal["auto", "fp32", "fp16", "int8"]
"""Which of the bundle's graphs runs. ``fp32`` is that graph in really float32; ``fp16`` and ``int8`` are the graphs
that have these types written into them. ``auto`` is the backend's choice: in OpenVINO the graph that was measured to be
the fastest on this machine (:mod:`engine.backends.fastest`), else the fp32 graph in the processor's fastest floating
type (bfloat16 where it has AMX or AVX512-BF16); in TensorRT what :func:`engine.contract.plan_cache.choose` says."""

PerformanceHint = Literal["throughput", "latency"]
"""For which the CPU's cores are arranged, in OpenVINO's words: ``throughput`` computes several tiles at a time, each on
a share of the cores; ``latency`` one at a time on all of them. Other backends have one arrangement."""


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """What ran, for logs and ``run.json``."""

    name: str
    library: str
    device: str
    precision: str
    """The floating type that the device computes in, as its library names it: ``f32``, ``tf32``, ``bf16``, ``f16``."""
    threads: int
    slots: int
    graph: Precision = "fp32"
    """Which of the bundle's graphs."""

    def __str__(self) -> str:
        return f"{self.library} on {self.device} ({self.graph} graph, {self.precision})"


class Backend(ABC):
    """One graph per scenario, compiled and warm, and ``info.slots`` tiles computed at a time.

    A context manager; closing it waits for the tiles in flight.
    """

    info: BackendInfo

    @abstractmethod
    def submit(self, scenario: Scenario, inputs: Inputs) -> Future[Outputs]:
        """Queue one tile; keep about ``info.slots`` in flight.

        The arrays must not change before the future is done. A failure of the library reaches the caller as
        :class:`~engine.contract.errors.BackendError` from ``Future.result``.
        """

    def infer(self, scenario: Scenario, inputs: Inputs) -> Outputs:
        """One tile, waited for."""
        return self.submit(scenario, inputs).result()

    @abstractmethod
    def close(self) -> None:
        """Wait for tiles in flight and free the graphs. ``info`` stays; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
