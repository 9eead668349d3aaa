"""Which backend is to run, and how: one value for everything that opens one."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.backends import instruction_sets
from engine.backends.base import Backend, ExecutionPrecision, Output, PerformanceHint
from engine.backends.golden import check_golden_tile
from engine.backends.remembered import Remembered
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, BackendUnavailableError, EngineError, IntegrityError, UsageError
from engine.contract.sensors import Scenario
from engine.deadline import left_behind

log = logging.getLogger(__name__)

BackendName = Literal["auto", "tensorrt", "openvino", "onnxruntime"]

CHAIN: tuple[BackendName, ...] = ("tensorrt", "openvino", "onnxruntime")
"""The backends in order of preference: what ``auto`` tries, and falls back on when one fails in flight."""
TITLES = {"tensorrt": "TensorRT", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}

_CLASSES = {
    "tensorrt": ("engine.backends.tensorrt", "TensorRtBackend", "pip install 'gemmnet-edge[gpu]'"),
    "openvino": ("engine.backends.openvino", "OpenVinoBackend", "pip install openvino"),
    "onnxruntime": ("engine.backends.onnxruntime", "OnnxRuntimeBackend", "pip install onnxruntime"),
}


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
    """A backend without an answer for so long, to the golden tile or later, counts as hung."""

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
        """Prepare the graphs of ``scenarios`` and check each against the golden tile. Nothing stands behind it.

        ``auto`` is the first of :data:`CHAIN` that opens: TensorRT where there is a CUDA device, the library and plans
        for both; else OpenVINO, the fastest on every CPU measured so far; and where that refuses the bundle, ONNX
        Runtime. The log has the reasons.

        Args:
            bundle: the model.
            scenarios: whose graphs may be asked for.
            wanted: the outputs to compute.
            remembered: what earlier starts found out, and a place for what this one does: OpenVINO's compiled graphs,
                and that a backend on the processor has reproduced the golden tiles. None begins from nothing.

        Raises:
            BackendUnavailableError: the library, its device or its plans are not there.
            BackendError: the library cannot prepare a graph.
            ManifestError: the bundle has no graph of that precision.
            IntegrityError: a plan or the golden tile is damaged.
            GoldenMismatchError: a graph answers something else than the model that was exported.
        """
        scenarios, wanted = tuple(scenarios), tuple(wanted)
        if self.name != "auto":
            return self._open(bundle, scenarios, wanted, remembered)
        refusals: dict[str, EngineError] = {}
        for name in CHAIN:
            try:
                backend = replace(self, name=name)._open(bundle, scenarios, wanted, remembered)
            except BackendError as error:
                refusals[name] = error
            except IntegrityError as error:
                if name != "tensorrt":  # of plans it has files of its own; any other is the bundle's
                    raise
                refusals[name] = error
            else:
                for refused, why in refusals.items():
                    level = logging.INFO if isinstance(why, BackendUnavailableError) else logging.WARNING
                    log.log(level, "%s runs, not %s: %s", TITLES[name], TITLES[refused], why)
                return backend
        if isinstance(refusals["openvino"], BackendUnavailableError):
            raise refusals["onnxruntime"]
        raise refusals["openvino"]

    def _open(
        self,
        bundle: Bundle,
        scenarios: tuple[Scenario, ...],
        wanted: tuple[Output, ...],
        remembered: Remembered | None,
    ) -> Backend:
        backend = self._prepared(bundle, scenarios, wanted, remembered)
        proof = {
            "bundle": bundle.digest,
            "by": msgspec.to_builtins(backend.info),
            "scenarios": scenarios,
            "wanted": wanted,
            "instructions": instruction_sets.in_use() or instruction_sets.told(),
        }
        known = remembered if self.name != "tensorrt" else None  # its plans may have been built anew
        if known is not None and known.note("golden", proof):
            log.info("%s, which has reproduced the golden tiles before", backend.info)
            return backend
        try:
            check_golden_tile(backend, bundle, scenarios=scenarios, wanted=wanted, limit_s=self.watchdog_s)
        except TimeoutError as error:
            left_behind.set()  # to close it would be to wait for it
            raise BackendError(
                f"{backend.info} gave no answer to the golden tile for {self.watchdog_s:g} s: it hangs, or needs a "
                "longer `watchdog_s`"
            ) from error
        except BaseException:
            backend.close()
            raise
        if known is not None:
            known.write("golden", proof, {"reproduced": True})
        log.info("%s, golden tile reproduced", backend.info)
        return backend

    def _prepared(
        self,
        bundle: Bundle,
        scenarios: tuple[Scenario, ...],
        wanted: tuple[Output, ...],
        remembered: Remembered | None,
    ) -> Backend:
        module_name, class_name, install = _CLASSES[self.name]
        try:
            make = getattr(importlib.import_module(module_name), class_name)
        except ImportError as error:
            raise BackendUnavailableError(
                f"the backend {self.name} needs a library that cannot be imported ({error}): {install}"
            ) from error
        of_its_own: dict[str, dict[str, Any]] = {
            "tensorrt": {"plans": self.plans},
            "openvino": {"hint": self.hint, "remembered": remembered},
        }
        common = {"precision": self.precision, "threads": self.threads}
        backend: Backend = make(bundle, scenarios, wanted, **common, **of_its_own.get(self.name, {}))
        return backend
