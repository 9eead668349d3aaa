"""The golden tile: does this backend, on this machine, still compute what was exported?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Output
from engine.contract.bundle import GOLDEN_STRIDE, Bundle
from engine.contract.errors import GoldenMismatchError, IntegrityError
from engine.contract.sensors import Scenario

MIN_CLASS_AGREEMENT = {"f32": 0.999, "bf16": 0.97, "f16": 0.99}
"""Share of pixels whose class must equal the exported model's, by the type the backend computes in."""
MAX_PROBABILITY_DIFFERENCE = {"f32": 5e-3, "bf16": 0.25, "f16": 0.05}
"""Largest allowed difference of a probability. Reduced types differ most on pixels between two classes."""


def check_golden_tile(
    backend: Backend, bundle: Bundle, *, scenarios: Iterable[Scenario], wanted: Iterable[Output]
) -> None:
    """Run the bundle's golden tile through each scenario and compare every wanted output.

    Raises:
        IntegrityError: the golden file lacks an array.
        GoldenMismatchError: an output differs by more than its tolerance; the message says which and by how much.
    """
    precision = backend.info.precision
    with np.load(bundle.golden_path) as golden:
        try:
            for scenario in scenarios:
                answer = backend.infer(scenario, {sensor: golden[sensor.value] for sensor in scenario.sensors})
                classes = golden[f"{scenario}/classes"]
                probabilities = golden[f"{scenario}/probabilities"].astype(np.float32)
                for output in wanted:
                    difference, limit, unit = _compare(output, answer[output], classes, probabilities, precision)
                    if difference > limit:
                        raise GoldenMismatchError(
                            f"{backend.info.library} on {backend.info.device} ({precision}) does not reproduce the "
                            f"golden tile of {bundle.root}: scenario {scenario}, output {output} differs by "
                            f"{difference:.4g} {unit} (limit {limit:.4g}): try --precision fp32 or another --backend"
                        )
        except KeyError as error:
            raise IntegrityError(f"{bundle.golden_path}: {error.args[0]}: export the bundle again") from error


def _compare(
    output: Output,
    answer: NDArray[np.generic],
    classes: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    precision: str,
) -> tuple[float, float, str]:
    """How far ``answer`` is off, the limit, and the unit of both."""
    limit = MAX_PROBABILITY_DIFFERENCE.get(precision, MAX_PROBABILITY_DIFFERENCE["bf16"])
    strided = answer[..., ::GOLDEN_STRIDE, ::GOLDEN_STRIDE].astype(np.float32)
    match output:
        case Output.CLASSES:
            agreement = MIN_CLASS_AGREEMENT.get(precision, MIN_CLASS_AGREEMENT["bf16"])
            return float((answer != classes).mean()), 1 - agreement, "of the pixels"
        case Output.CONFIDENCE:
            off = np.abs(strided - np.rint(probabilities.max(axis=0) * 255)).max()
            return float(off), limit * 255 + 1, "of 255"
        case Output.PROBABILITIES:
            return float(np.abs(strided - probabilities).max()), limit, "probability"
