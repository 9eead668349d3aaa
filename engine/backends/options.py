"""Which backend is to run, and how: one value for everything that opens one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.backends import BackendName, open_backend
from engine.backends.base import Backend, ExecutionPrecision, Output, PerformanceHint
from engine.contract.bundle import Bundle
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """The choice of a backend.

    Raises:
        UsageError: a number is not positive.
    """

    name: BackendName = "auto"
    """``auto``: TensorRT where it can run, else OpenVINO, else ONNX Runtime."""
    precision: ExecutionPrecision = "auto"
    threads: int | None = None
    """CPU threads; None is all cores."""
    hint: PerformanceHint = "throughput"
    """What OpenVINO arranges the cores for."""
    plans: Path | None = None
    """Folder of TensorRT plans; None is the one under the bundle."""
    watchdog_s: float = 30.0
    """A backend without an answer for so long counts as hung (:mod:`engine.backends.resilient`)."""

    def __post_init__(self) -> None:
        for option, number in (("watchdog_s", self.watchdog_s), ("`threads`", self.threads)):
            if number is not None and not 0 < number < float("inf"):
                raise UsageError(f"{option} must be a positive number, received {number:g}")

    def open(self, bundle: Bundle, *, scenarios: Iterable[Scenario], wanted: Iterable[Output]) -> Backend:
        """Open it; nothing stands behind it.

        Args:
            bundle: the model.
            scenarios: whose graphs may be asked for.
            wanted: the outputs to compute.

        Raises:
            EngineError: as :func:`engine.backends.open_backend`.
        """
        return open_backend(
            self.name,
            bundle,
            scenarios=scenarios,
            wanted=wanted,
            precision=self.precision,
            threads=self.threads,
            hint=self.hint,
            plans=self.plans,
            answer_limit_s=self.watchdog_s,
        )
