"""Where the time of a tile goes, node by node as a runtime executes them, and which layer each node belongs to."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import openvino.properties as props
import openvino.properties.hint as hints
from numpy.typing import NDArray

from benchmarks.roofline.graph import GraphLayer, GraphWork
from calib.runtimes import compile_openvino
from engine.backends.onnxruntime import AS_WRITTEN, ERRORS_ONLY, PROVIDER
from engine.contract.bundle import Precision

Feed = Mapping[str, NDArray[np.generic]]
"""A batch of one, by input name."""
SHORT_TYPES = {"float": "f32", "float16": "f16", "uint8": "u8", "int8": "i8", "int64": "i64", "int32": "i32"}


@dataclass(frozen=True, kw_only=True)
class Executed:
    """A node of a runtime's own graph."""

    name: str
    kernel: str
    type: str
    """What it computes in, as the runtime says."""
    ms: float
    """Median over rounds."""
    holds: frozenset[str]
    """Names of the nodes or tensors of the ONNX graph that it says it is made of."""


@dataclass(frozen=True, kw_only=True)
class ProfileRow:
    """An executed node, the layer whose work it is part of, and how much of that layer's product it does."""

    node: Executed
    layer: GraphLayer | None
    """None where the runtime's name leads to none: what comes before the first product, and what it adds itself."""
    owns: tuple[GraphLayer, ...]
    """Layers whose product runs in this node; a node without one only moves or changes what another computed."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(layer.macs for layer in self.owns)


class Profile(ABC):
    """One graph, one tile at a time over all threads, timed node by node."""

    @abstractmethod
    def run(self, feed: Feed, times: int) -> None:
        """One round."""

    @abstractmethod
    def nodes(self) -> list[Executed]:
        """What ran, in order; ends the profile."""


class OpenVinoProfile(Profile):
    """By performance counters (property PERF_COUNT) and the execution graph's ``originalLayersNames``.

    Counters are means over all tiles since compilation, in whole microseconds; a round is the difference of two.
    """

    def __init__(
        self, model: onnx.ModelProto, outputs: Sequence[str], precision: Precision, threads: int | None
    ) -> None:
        config: dict[Any, object] = {
            hints.performance_mode: hints.PerformanceMode.LATENCY,
            props.enable_profiling: True,
        }
        if precision == "fp32":  # as engine.backends.openvino does
            config[hints.inference_precision] = ov.Type.f32
        if threads is not None:
            config[props.inference_num_threads] = threads
        self._compiled = compile_openvino(model, outputs, config)
        self._request = self._compiled.create_infer_request()
        self._count, self._totals = 0, dict[str, float]()
        self._rounds: dict[str, list[float]] = defaultdict(list)

    def run(self, feed: Feed, times: int) -> None:
        """One round; the first warms up."""
        warm = 0 if self._count else 2
        for index in range(warm + times):
            self._request.infer(dict(feed))
            self._count += 1
            if index == warm - 1:
                self._totals = self._total_us()
        totals = self._total_us()
        for name, total in totals.items():
            self._rounds[name].append(max(total - self._totals.get(name, 0.0), 0.0) / times / 1e3)
        self._totals = totals

    def _total_us(self) -> dict[str, float]:
        return {
            node.node_name: self._count * node.real_time.total_seconds() * 1e6
            for node in self._request.profiling_info
            if node.status == ov.ProfilingInfo.Status.EXECUTED
        }

    def nodes(self) -> list[Executed]:
        """What ran, in order."""
        found = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            told = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            name = node.get_friendly_name()
            if name in self._rounds and told["execTimeMcs"] != "not_executed":
                found.append(
                    Executed(
                        name=name,
                        kernel=f"{told['layerType']} {told['primitiveType']}",
                        type=told["runtimePrecision"],
                        ms=statistics.median(self._rounds[name]),
                        holds=frozenset(filter(None, told["originalLayersNames"].split(","))),
                    )
                )
        return found


class OnnxRuntimeProfile(Profile):
    """By the session's profile (JSON, an event per node and run), with the settings of :mod:`engine.backends`."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int | None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry(*AS_WRITTEN)
        options.enable_profiling = True
        self._folder = tempfile.TemporaryDirectory(prefix="roofline-")
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self._session = ort.InferenceSession(path, options, providers=[PROVIDER])
        self._outputs = list(outputs)
        self._runs = self._warm = 0

    def run(self, feed: Feed, times: int) -> None:
        """One round; the first warms up."""
        if not self._runs:
            self._warm = 2
        for _ in range(times + (0 if self._runs else self._warm)):
            self._session.run(self._outputs, dict(feed))
            self._runs += 1

    def nodes(self) -> list[Executed]:
        """What ran, in order; the session is of no use afterwards."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        times: dict[str, list[float]] = defaultdict(list)
        told: dict[str, dict[str, Any]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
                name = event["name"].removesuffix(_KERNEL)
                times[name].append(event["dur"] / 1e3)
                told[name] = event["args"]
        found = []
        for name, durations in times.items():
            inputs = [next(iter(item)) for item in told[name].get("input_type_shape", []) if item]
            type_ = inputs[0] if inputs else ""
            found.append(
                Executed(
                    name=name,
                    kernel=told[name]["op_name"],
                    type=SHORT_TYPES.get(type_, type_),
                    ms=statistics.median(durations[self._warm :]),
                    # a fused node is called after the tensor it makes
                    holds=frozenset({name, _DECORATION.sub("", name)}),
                )
            )
        return found


_KERNEL = "_kernel_time"
_DECORATION = re.compile(r"^InsertedPrecisionFreeCast_|(_nchwc)?(_token_\d+)?$")
"""What ONNX Runtime adds to the name of a tensor to name a node that it makes."""


def rows_of(nodes: Sequence[Executed], work: GraphWork) -> list[ProfileRow]:
    """Each executed node with its layer, the slowest first.

    A product belongs to the node that names it; where a runtime names only what it fused behind it, to the first node
    that names any of the layer's nodes.
    """
    owner: dict[str, int] = {}
    for layer in work.layers:
        exact = [index for index, node in enumerate(nodes) if node.holds & layer.anchor]
        index = next(iter(exact), None)
        if index is None:
            index = next((index for index, node in enumerate(nodes) if node.holds & layer.nodes), None)
        if index is not None:
            owner[layer.name] = index
    return sorted(_rows(nodes, work, owner), key=lambda row: -row.node.ms)


def _rows(nodes: Sequence[Executed], work: GraphWork, owner: Mapping[str, int]) -> Iterator[ProfileRow]:
    for index, node in enumerate(nodes):
        owns = tuple(layer for layer in work.layers if owner.get(layer.name) == index)
        touched = owns or tuple(layer for layer in work.layers if node.holds & layer.nodes)
        yield ProfileRow(node=node, layer=touched[0] if touched else None, owns=owns)
