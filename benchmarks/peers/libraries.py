"""One scenario's network in one library, ready to map tiles, called as its documentation calls it first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import numpy as np
import openvino
import openvino.properties.hint as hints
from numpy.typing import NDArray

from benchmarks.peers.peer import Classes, Peer, Take
from benchmarks.peers.pytorch import KEEP_MEMORY, CompiledTorchPeer, OwnProcess, TorchPeer
from benchmarks.peers.subject import Subject
from benchmarks.rates import WANTED, compile_openvino, hints_of, open_bare
from engine.backends.base import ExecutionPrecision, Inputs, Output
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Precision
from engine.contract.errors import BackendError, BackendUnavailableError
from engine.contract.sensors import Scenario


class LibraryPeer(Peer):
    """A graph of the bundle in a library's plain call (:func:`benchmarks.rates.open_bare`): all cores on one tile."""

    def __init__(self, library: str, infer: Callable[[Mapping[str, NDArray[np.generic]]], Any]) -> None:
        self.library = library
        self._infer = infer

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        classes: Classes = self._infer({sensor.value: values[None] for sensor, values in inputs.items()})[0][0]
        return classes


class OpenVinoQueue(Peer):
    """OpenVINO's ``AsyncInferQueue`` under the throughput hint.

    https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/high-level-performance-hints.html
    """

    def __init__(self, subject: Subject, scenario: Scenario, precision: Precision) -> None:
        self.library = f"openvino {version('openvino').split('-')[0]}"
        path = subject.bundle.graph(scenario, precision)
        throughput = hints.PerformanceMode.THROUGHPUT
        self._queue = openvino.AsyncInferQueue(compile_openvino(path, precision=precision, hint=throughput))

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        found: list[Classes] = []
        self.infer_each([inputs], lambda _, classes: found.append(classes.copy()))
        return found[0]

    def infer_each(self, tiles: Iterable[Inputs], take: Take) -> None:
        """As many tiles at a time as OpenVINO thinks best."""
        self._queue.set_callback(lambda request, number: take(number, request.get_output_tensor(0).data[0]))
        for number, inputs in enumerate(tiles):
            self._queue.start_async({sensor.value: values[None] for sensor, values in inputs.items()}, number)
        self._queue.wait_all()


class EnginePeer(Peer):
    """A backend of the engine, opened as a run opens it, golden tile included: for lone tiles as a paced flight does
    (``--hint latency``), for many as a run over rasters does.
    """

    def __init__(
        self, subject: Subject, scenario: Scenario, precision: ExecutionPrecision, backend: BackendName = "openvino"
    ) -> None:
        self._scenario = scenario
        with ExitStack() as opened:
            found = [
                opened.enter_context(
                    BackendOptions(name=backend, precision=precision, hint=hint).open(
                        subject.bundle, scenarios=[scenario], wanted=WANTED
                    )
                )
                for hint in hints_of(backend)
            ]
            self._many, self._lone = found[0], found[-1]
            self._open = opened.pop_all()
        self.library = self._many.info.library

    def infer(self, inputs: Inputs) -> Classes:
        """See :meth:`Peer.infer`."""
        return self._lone.infer(self._scenario, inputs)[Output.CLASSES]

    def infer_each(self, tiles: Iterable[Inputs], take: Take) -> None:
        """With all slots busy and a tile waiting for each."""
        flying: deque[Any] = deque()
        taken = 0
        for inputs in tiles:
            if len(flying) == 2 * self._many.info.slots:
                take(taken, flying.popleft().result()[Output.CLASSES])
                taken += 1
            flying.append(self._many.submit(self._scenario, inputs))
        for answer in flying:
            take(taken, answer.result()[Output.CLASSES])
            taken += 1

    def close(self) -> None:
        """See :meth:`Peer.close`."""
        self._open.close()


ENGINE = "engine"
EAGER = "PyTorch eager"
EAGER_KEEPING = "PyTorch eager, memory kept"

Opener = Callable[[Subject, Scenario], Peer]


def _torch(kind: type[TorchPeer], environment: Mapping[str, str] | None = None) -> Opener:
    return lambda subject, scenario: OwnProcess(
        kind, subject.modules[scenario], scenario, subject.bundle.manifest.tile_px, environment
    )


def _bare(library: str, precision: Precision) -> Opener:
    def open_it(subject: Subject, scenario: Scenario) -> Peer:
        try:
            infer = open_bare(library, subject.bundle.graph(scenario, precision), precision=precision)
        except ImportError as error:
            raise BackendUnavailableError(f"{library} is not installed ({error}): pip install {library}") from error
        assert infer is not None, library
        return LibraryPeer(f"{library} {version(library).split('-')[0]}", infer)

    return open_it


def _queue(precision: Precision) -> Opener:
    return lambda subject, scenario: OpenVinoQueue(subject, scenario, precision)


def _engine(precision: ExecutionPrecision) -> Opener:
    return lambda subject, scenario: EnginePeer(subject, scenario, precision)


CPU_PEERS: Mapping[tuple[str, str], Opener] = {
    (EAGER, "fp32"): _torch(TorchPeer),
    (EAGER_KEEPING, "fp32"): _torch(TorchPeer, KEEP_MEMORY),
    ("torch.compile", "fp32"): _torch(CompiledTorchPeer),
    ("ONNX Runtime", "fp32"): _bare("onnxruntime", "fp32"),
    ("OpenVINO infer", "fp32"): _bare("openvino", "fp32"),
    ("OpenVINO AsyncInferQueue", "fp32"): _queue("fp32"),
    (ENGINE, "fp32"): _engine("fp32"),
    ("OpenVINO infer", "int8"): _bare("openvino", "int8"),
    (ENGINE, "int8"): _engine("int8"),
}
"""By name and precision."""

MODEL_PEERS = (
    (EAGER, "fp32"),
    (EAGER_KEEPING, "fp32"),
    ("OpenVINO infer", "fp32"),
    (ENGINE, "fp32"),
    ("OpenVINO infer", "int8"),
    (ENGINE, "int8"),
)
"""Those in which networks are compared with each other."""


def open_peer(opener: Opener, subject: Subject, scenario: Scenario) -> Peer:
    """Ready to map.

    Raises:
        EngineError: it cannot run here; the message says why and what to do.
    """
    try:
        return opener(subject, scenario)
    except RuntimeError as error:  # OpenVINO's and PyTorch's own errors
        raise BackendError(f"the library refuses the network: {error}") from error
