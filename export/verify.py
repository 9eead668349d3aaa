"""Every exported graph against PyTorch in fp32, in ONNX Runtime and OpenVINO, before a bundle is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from torch import nn

from engine.contract.bundle import Precision
from engine.contract.errors import BundleError
from engine.contract.sensors import Scenario
from export.golden import GoldenInputs
from export.scenarios import OUTPUTS, inputs_of, scenario_module
from train.system import System


@dataclass(frozen=True, kw_only=True)
class ExportTolerance:
    """What a graph may differ from PyTorch by."""

    class_agreement: float
    """Smallest share of pixels with the same class."""
    probability_error: float
    """Largest absolute difference."""

    @property
    def confidence_error(self) -> int:
        """Largest difference in steps of 1/255: that of the probability, and one for rounding."""
        return int(self.probability_error * 255) + 1


TOLERANCES: Mapping[Precision, ExportTolerance] = {
    "fp32": ExportTolerance(class_agreement=0.999, probability_error=1e-3),
    # Measured on the demo model: at least 99.88 % and at most 0.009, on a procedural tile and on noise.
    "fp16": ExportTolerance(class_agreement=0.995, probability_error=0.03),
}

Arrays = tuple[NDArray[np.generic], ...]
Infer = Callable[[Arrays], Arrays]
"""Inputs in graph order -> (classes, confidence, probabilities), batched."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How close one runtime's answers to one graph are to PyTorch's, over all tiles."""

    scenario: Scenario
    precision: Precision
    runtime: str
    class_agreement: float
    """Share of pixels with the same class."""
    probability_error: float
    """Largest absolute difference."""
    confidence_error: int
    """Largest absolute difference, in steps of 1/255."""

    @property
    def holds(self) -> bool:
        """Whether all three are within tolerance."""
        allowed = TOLERANCES[self.precision]
        return (
            self.class_agreement >= allowed.class_agreement
            and self.probability_error <= allowed.probability_error
            and self.confidence_error <= allowed.confidence_error
        )


def torch_infer(module: nn.Module) -> Infer:
    """A scenario's module as a function on arrays, in fp32 on the CPU."""

    def infer(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            return tuple(out.numpy() for out in module(*(torch.from_numpy(x) for x in inputs)))

    return infer


def onnxruntime_infer(graph: Path) -> Infer:
    """An ONNX file in ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def infer(inputs: Arrays) -> Arrays:
        return tuple(session.run(list(OUTPUTS), dict(zip(names, inputs, strict=True))))

    return infer


@cache
def _core() -> openvino.Core:
    """One Core for the process: see https://github.com/openvinotoolkit/openvino/issues/35338."""
    return openvino.Core()


def openvino_infer(graph: Path) -> Infer:
    """An ONNX file in OpenVINO on the CPU, in fp32 also where the CPU has bf16 and OpenVINO would prefer it.

    OpenVINO widens the fp16 of a graph, so that of an fp16 graph this sees the rounded weights alone.
    """
    compiled = _core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [port.any_name for port in compiled.inputs]

    def infer(inputs: Arrays) -> Arrays:
        results = compiled(dict(zip(names, inputs, strict=True)))
        return tuple(results[name] for name in OUTPUTS)

    return infer


RUNTIMES: Mapping[str, Callable[[Path], Infer]] = {
    "onnxruntime": onnxruntime_infer,
    "openvino": openvino_infer,
}


def batches_for(tile: GoldenInputs, *, seed: int = 0) -> tuple[tuple[GoldenInputs, ...], ...]:
    """A batch of one, ``tile``, and a batch of three: two of random values past every clip, and ``tile`` mirrored."""
    rng = np.random.default_rng(seed)
    noise = [
        GoldenInputs(
            rgir=rng.integers(0, 256, tile.rgir.shape, np.uint8),
            ndsm=rng.uniform(-5, 80, tile.ndsm.shape).astype(np.float32),
        )
        for _ in range(2)
    ]
    mirrored = GoldenInputs(rgir=tile.rgir[:, :, ::-1].copy(), ndsm=tile.ndsm[:, :, ::-1].copy())
    return (tile,), (*noise, mirrored)


def answers(model: System, tile: GoldenInputs) -> dict[Scenario, tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """PyTorch's (classes [T, T], probabilities [C, T, T]) for each scenario."""
    found = {}
    for scenario in Scenario:
        infer = torch_infer(scenario_module(model, scenario))
        classes, _, probabilities = infer(_stack([tile], scenario))
        found[scenario] = classes[0], probabilities[0]
    return found


def compare(
    model: System, scenario: Scenario, graphs: Mapping[Precision, Path], batches: Sequence[Sequence[GoldenInputs]]
) -> tuple[Parity, ...]:
    """One :class:`Parity` per graph and runtime for the graphs of one scenario."""
    inputs = [_stack(batch, scenario) for batch in batches]
    reference = torch_infer(scenario_module(model, scenario))
    expected = [reference(batch) for batch in inputs]
    parities = []
    for precision, graph in graphs.items():
        for runtime, load in RUNTIMES.items():
            infer = load(graph)
            received = [infer(batch) for batch in inputs]
            parities.append(_parity(expected, received, scenario=scenario, precision=precision, runtime=runtime))
    return tuple(parities)


def verify(
    model: System, graphs: Mapping[Scenario, Mapping[Precision, Path]], batches: Sequence[Sequence[GoldenInputs]]
) -> tuple[Parity, ...]:
    """Compare every graph in every runtime.

    Raises:
        BundleError: one is out of tolerance; the message holds the numbers.
    """
    parities = tuple(p for scenario, found in graphs.items() for p in compare(model, scenario, found, batches))
    failed = [p for p in parities if not p.holds]
    if failed:
        allowed = "; ".join(
            f"{precision} the same class on {limit.class_agreement:.1%} of the pixels, probabilities within "
            f"{limit.probability_error} and confidence within {limit.confidence_error}"
            for precision, limit in TOLERANCES.items()
            if any(p.precision == precision for p in failed)
        )
        received = "; ".join(
            f"{p.scenario} {p.precision} in {p.runtime} {p.class_agreement:.4%}, {p.probability_error:.1e} and "
            f"{p.confidence_error}"
            for p in failed
        )
        raise BundleError(
            f"each graph must give PyTorch's answer ({allowed}); received {received}; nothing was published: a model "
            "with unbounded activations can do this, so check its training, then report the checkpoint"
        )
    return parities


def parity_table(parities: Sequence[Parity]) -> str:
    """Parities as lines of text."""
    lines = [f"{'graph':<19}{'runtime':<13}{'same class':>12}{'max |dp|':>11}{'max |dconf|':>13}"]
    lines += [
        f"{p.scenario:<14}{p.precision:<5}{p.runtime:<13}"
        f"{p.class_agreement:>12.4%}{p.probability_error:>11.1e}{p.confidence_error:>13}"
        for p in parities
    ]
    return "\n".join(lines)


def _stack(tiles: Sequence[GoldenInputs], scenario: Scenario) -> Arrays:
    return tuple(np.stack([tile.sensor(sensor) for tile in tiles]) for sensor in inputs_of(scenario))


def _parity(
    expected: Sequence[Arrays],
    received: Sequence[Arrays],
    *,
    scenario: Scenario,
    precision: Precision,
    runtime: str,
) -> Parity:
    classes, confidence, probabilities = (
        [(e[i].astype(np.float32), r[i].astype(np.float32)) for e, r in zip(expected, received, strict=True)]
        for i in range(3)
    )
    same = sum(int((e == r).sum()) for e, r in classes)
    return Parity(
        scenario=scenario,
        precision=precision,
        runtime=runtime,
        class_agreement=same / sum(e.size for e, _ in classes),
        # A NaN must fail the comparison, not vanish in a maximum.
        probability_error=max(float(np.nan_to_num(np.abs(e - r), nan=np.inf).max()) for e, r in probabilities),
        confidence_error=max(int(np.abs(e - r).max()) for e, r in confidence),
    )
