"""The golden tile: does this backend, on this machine, still compute what was exported?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Output
from engine.contract.bundle import GOLDEN_STRIDE, Bundle, Precision
from engine.contract.errors import GoldenMismatchError, IntegrityError
from engine.contract.sensors import Scenario


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an answer may be from the exported model's."""

    class_agreement: float
    """Least share of pixels with the same class."""
    probability: float
    """Largest difference of a probability; it is met on pixels between two classes."""


TOLERANCES = {
    "f32": Tolerance(class_agreement=0.999, probability=5e-3),
    "tf32": Tolerance(class_agreement=0.99, probability=0.05),
    "f16": Tolerance(class_agreement=0.99, probability=0.05),
    "bf16": Tolerance(class_agreement=0.97, probability=0.25),
    "int8": Tolerance(class_agreement=0.95, probability=0.5),
}
"""By type of arithmetic. Wide enough for every device, narrow enough to notice a wrong graph or a broken kernel."""


def tolerance_of(graph: Precision, arithmetic: str) -> Tolerance:
    """What a graph of one precision may differ by when a device computes its floating-point part in ``arithmetic``."""
    written = TOLERANCES[{"fp32": "f32", "fp16": "f16", "int8": "int8"}[graph]]
    computed = TOLERANCES.get(arithmetic, TOLERANCES["bf16"])
    return Tolerance(
        class_agreement=min(written.class_agreement, computed.class_agreement),
        probability=max(written.probability, computed.probability),
    )


def check_golden_tile(
    backend: Backend, bundle: Bundle, *, scenarios: Iterable[Scenario], wanted: Iterable[Output]
) -> None:
    """Run the bundle's golden tile through each scenario and compare every wanted output.

    Raises:
        IntegrityError: the golden file lacks an array.
        GoldenMismatchError: an output differs by more than its tolerance; the message says which and by how much.
    """
    info = backend.info
    tolerance = tolerance_of(info.graph, info.precision)
    with np.load(bundle.golden_path) as golden:
        try:
            for scenario in scenarios:
                answer = backend.infer(scenario, {sensor: golden[sensor.value] for sensor in scenario.sensors})
                classes = golden[f"{scenario}/classes"]
                probabilities = golden[f"{scenario}/probabilities"].astype(np.float32)
                for output in wanted:
                    difference, limit, unit = _compare(output, answer[output], classes, probabilities, tolerance)
                    if difference > limit:
                        raise GoldenMismatchError(
                            f"{info} does not reproduce the golden tile of {bundle.root}: scenario {scenario}, output "
                            f"{output} differs by {difference:.4g} {unit} (limit {limit:.4g}): try --precision fp32 "
                            "or another --backend"
                        )
        except KeyError as error:
            raise IntegrityError(f"{bundle.golden_path}: {error.args[0]}: export the bundle again") from error


def _compare(
    output: Output,
    answer: NDArray[np.generic],
    classes: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    tolerance: Tolerance,
) -> tuple[float, float, str]:
    """How far ``answer`` is off, the limit, and the unit of both."""
    limit = tolerance.probability
    strided = answer[..., ::GOLDEN_STRIDE, ::GOLDEN_STRIDE].astype(np.float32)
    match output:
        case Output.CLASSES:
            return float((answer != classes).mean()), 1 - tolerance.class_agreement, "of the pixels"
        case Output.CONFIDENCE:
            return _farthest(strided - np.rint(probabilities.max(axis=0) * 255)), limit * 255 + 1, "of 255"
        case Output.PROBABILITIES:
            return _farthest(strided - probabilities), limit, "probability"


def _farthest(difference: NDArray[np.float32]) -> float:
    """A NaN is infinitely far off: it must fail the comparison, not vanish in a maximum."""
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max())
