"""Which backend is to run, and how: one value for everything that opens one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from engine.backends import BackendName, open_backend
from engine.backends.base import Backend, ExecutionPrecision, Output, PerformanceHint
from engine.backends.fastest import KIND, candidates, conditions, measured, rates_of, told
from engine.backends.remembered import Remembered
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError, UsageError
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)


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

    def open(
        self,
        bundle: Bundle,
        *,
        scenarios: Iterable[Scenario],
        wanted: Iterable[Output],
        remembered: Remembered | None = None,
    ) -> Backend:
        """Open it; nothing stands behind it.

        Args:
            bundle: the model.
            scenarios: whose graphs may be asked for.
            wanted: the outputs to compute.
            remembered: see :func:`engine.backends.open_backend`.

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
            remembered=remembered,
        )

    def learn(self, bundle: Bundle, *, scenarios: Iterable[Scenario], wanted: Iterable[Output]) -> str:
        """Measure which graph is the fastest here, if ``auto`` is to know and does not yet; takes a few seconds once.

        A graph that does not reproduce the golden tiles is none to choose from. Where TensorRT may run nothing is
        measured: its plans know their own times.

        Returns:
            What ``auto`` is here, in words; empty where nothing is known.
        """
        scenarios, wanted, remembered = tuple(scenarios), tuple(wanted), Remembered.here()
        if remembered is None or self.precision != "auto" or self.name not in ("auto", "openvino"):
            return ""
        if self.name == "auto" and find_spec("pycuda") is not None:
            return ""
        rates = measured(remembered, bundle, self.threads, self.hint)
        if not rates:
            with ExitStack() as stack:
                opened: dict[Precision, Backend] = {}
                for graph in candidates(bundle, scenarios):
                    asked = replace(self, name="openvino", precision="auto" if graph == "fp32" else graph)
                    try:
                        opened[graph] = stack.enter_context(
                            asked.open(bundle, scenarios=scenarios, wanted=wanted, remembered=remembered)
                        )
                    except BackendError as error:
                        log.info("%s is none to choose from: %s", graph, error)
                if not opened:
                    return ""
                rates = rates_of(opened, bundle, scenarios[0])
            remembered.write(
                KIND, conditions(bundle, self.threads, self.hint), {str(name): rates[name] for name in rates}
            )
        return told(rates)
