"""The golden tiles: does this backend, on this machine, still compute what was exported?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends import instruction_sets
from engine.backends.base import Backend, BackendInfo, Output
from engine.contract.bundle import GOLDEN_STRIDE, Bundle, Precision
from engine.contract.errors import GoldenMismatchError
from engine.contract.sensors import Scenario


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an answer may be from the exported model's."""

    class_agreement: float
    """Least share of pixels with the same class."""
    max_probability: float
    """Largest difference of a probability; it is met on pixels between two classes."""
    mean_probability: float
    """Mean difference of the probabilities."""


TOLERANCES = {
    "f32": Tolerance(class_agreement=0.999, max_probability=5e-3, mean_probability=1e-3),
    "tf32": Tolerance(class_agreement=0.99, max_probability=0.05, mean_probability=5e-3),
    "f16": Tolerance(class_agreement=0.99, max_probability=0.05, mean_probability=5e-3),
    "bf16": Tolerance(class_agreement=0.97, max_probability=0.25, mean_probability=0.02),
    "int8": Tolerance(class_agreement=0.95, max_probability=0.75, mean_probability=0.02),
}
"""By type of arithmetic, with room for other devices and models above what `python -m benchmarks.agreement` measured on
the demo bundle on a CPU without VNNI. Worst scenario of OpenVINO and ONNX Runtime: fp16 99.93 % of the classes, 0.010
at most, 0.0002 on average; int8 97.6 %, 0.55 and 0.0065."""


def tolerance_of(graph: Precision, arithmetic: str) -> Tolerance:
    """What a graph of one precision may differ by when a device computes its floating-point part in ``arithmetic``."""
    written = TOLERANCES[{"fp32": "f32", "fp16": "f16", "int8": "int8"}[graph]]
    computed = TOLERANCES.get(arithmetic, TOLERANCES["bf16"])
    return min(written, computed, key=lambda tolerance: tolerance.class_agreement)


def check_golden_tile(
    backend: Backend,
    bundle: Bundle,
    *,
    scenarios: Iterable[Scenario],
    wanted: Iterable[Output],
    limit_s: float | None = None,
) -> None:
    """Run the bundle's golden tiles through each scenario and compare every wanted output.

    Args:
        backend: opened.
        bundle: whose graphs it holds.
        scenarios: to check.
        wanted: the outputs to compare.
        limit_s: longest wait for an answer; None waits without end.

    Raises:
        TimeoutError: there is no answer in time: the library hangs.
        IntegrityError: the golden file differs from the manifest, or lacks an array.
        GoldenMismatchError: an output differs by more than its tolerance; the message says which and by how much.
    """
    info = backend.info
    tolerance = tolerance_of(info.graph, info.precision)
    scenarios, wanted = tuple(scenarios), tuple(wanted)
    for tile in range(bundle.manifest.golden_tiles):
        golden = bundle.golden(tile)
        answers = {  # asked for at once, to keep every slot busy
            scenario: backend.submit(scenario, {sensor: golden[sensor.value] for sensor in scenario.sensors})
            for scenario in scenarios
        }
        for scenario, under_way in answers.items():
            answer = under_way.result(limit_s)
            classes = golden[f"{scenario}/classes"]
            probabilities = golden[f"{scenario}/probabilities"].astype(np.float32)
            for output in wanted:
                for difference, limit, unit in _compare(output, answer[output], classes, probabilities, tolerance):
                    if difference <= limit:
                        continue
                    which = f" number {tile}" if tile else ""
                    raise GoldenMismatchError(
                        f"{info}{_processor(info)} does not reproduce the golden tile{which} of {bundle.root}: "
                        f"scenario {scenario}, output {output} differs by {difference:.4g} {unit} (limit "
                        f"{limit:.4g}): try `precision=fp32` or another `backend`"
                    )


def _processor(info: BackendInfo) -> str:
    """With which instructions OpenVINO computed: its kernels differ by them."""
    name = instruction_sets.in_use() if info.name == "openvino" else ""
    return f" with {name}" if name else ""


def _compare(
    output: Output,
    answer: NDArray[np.generic],
    classes: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    tolerance: Tolerance,
) -> Iterator[tuple[float, float, str]]:
    """In how many ways ``answer`` may be off: how far it is, the limit, and the unit of both."""
    if output is Output.CLASSES:
        yield float((answer != classes).mean()), 1 - tolerance.class_agreement, "of the pixels"
        return
    strided = answer[..., ::GOLDEN_STRIDE, ::GOLDEN_STRIDE].astype(np.float32)
    if output is Output.CONFIDENCE:
        expected, scale, rounding, unit = np.rint(probabilities.max(axis=0) * 255), 255.0, 1.0, "of 255"
    else:
        expected, scale, rounding, unit = probabilities, 1.0, 0.0, "probability"
    # A NaN is infinitely far off: it must fail the comparison, not vanish in a maximum.
    off = np.nan_to_num(np.abs(strided - expected), nan=np.inf)
    yield float(off.max()), tolerance.max_probability * scale + rounding, unit
    yield float(off.mean()), tolerance.mean_probability * scale + rounding, f"{unit} on average"
