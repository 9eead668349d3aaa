"""Backends: how a scenario's graph is executed.

:func:`open_backend` is the only place that chooses one, and none is handed out before it has reproduced the bundle's
golden tile.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.backends import instruction_sets
from engine.backends.base import Backend, ExecutionPrecision, Output, PerformanceHint
from engine.backends.golden import check_golden_tile
from engine.backends.remembered import Remembered
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, BackendUnavailableError, EngineError, IntegrityError
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


def open_backend(
    name: BackendName,
    bundle: Bundle,
    *,
    scenarios: Iterable[Scenario],
    wanted: Iterable[Output],
    precision: ExecutionPrecision = "auto",
    threads: int | None = None,
    hint: PerformanceHint = "throughput",
    plans: Path | None = None,
    answer_limit_s: float | None = None,
    remembered: Remembered | None = None,
) -> Backend:
    """Prepare the graphs of ``scenarios`` and check each against the golden tile.

    ``auto`` is the first of :data:`CHAIN` that opens: TensorRT where there is a CUDA device, the library and plans for
    both; else OpenVINO, the fastest on every CPU measured so far; and where that refuses the bundle, ONNX Runtime. The
    log has the reasons.

    Args:
        name: of the backend.
        bundle: the model.
        scenarios: whose graphs may be asked for.
        wanted: the outputs to compute.
        precision: of the graphs.
        threads: CPU threads; None is all cores.
        hint: what OpenVINO is arranged for.
        plans: folder of TensorRT plans; None is the one under the bundle.
        answer_limit_s: longest wait for the golden tile's answer; None waits without end.
        remembered: what earlier starts found out, and a place for what this one does: OpenVINO's compiled graphs, and
            that a backend on the processor has reproduced the golden tiles. None begins from nothing.

    Raises:
        BackendUnavailableError: the library, its device or its plans are not there.
        BackendError: the library cannot prepare a graph.
        ManifestError: the bundle has no graph of that precision.
        IntegrityError: a plan or the golden tile is damaged.
        GoldenMismatchError: a graph answers something else than the model that was exported.
    """
    scenarios, wanted = tuple(scenarios), tuple(wanted)
    common: dict[str, Any] = {"precision": precision, "threads": threads}
    options = {
        "tensorrt": {**common, "plans": plans},
        "openvino": {**common, "hint": hint, "remembered": remembered},
        "onnxruntime": common,
    }
    if name != "auto":
        return _open(name, bundle, scenarios, wanted, answer_limit_s, remembered, **options[name])
    refusals: dict[str, EngineError] = {}
    for each in CHAIN:
        try:
            backend = _open(each, bundle, scenarios, wanted, answer_limit_s, remembered, **options[each])
        except BackendError as error:
            refusals[each] = error
        except IntegrityError as error:
            if each != "tensorrt":  # of plans it has files of its own; any other is the bundle's
                raise
            refusals[each] = error
        else:
            for refused, why in refusals.items():
                level = logging.INFO if isinstance(why, BackendUnavailableError) else logging.WARNING
                log.log(level, "%s runs, not %s: %s", TITLES[each], TITLES[refused], why)
            return backend
    if isinstance(refusals["openvino"], BackendUnavailableError):
        raise refusals["onnxruntime"]
    raise refusals["openvino"]


def _open(
    name: str,
    bundle: Bundle,
    scenarios: tuple[Scenario, ...],
    wanted: tuple[Output, ...],
    answer_limit_s: float | None,
    known: Remembered | None,
    **options: Any,
) -> Backend:
    module_name, class_name, install = _CLASSES[name]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"the backend {name} needs a library that cannot be imported ({error}): {install}"
        ) from error
    backend: Backend = getattr(module, class_name)(bundle, scenarios, wanted, **options)
    proof = {"bundle": bundle.digest, "by": msgspec.to_builtins(backend.info), "scenarios": scenarios, "wanted": wanted}
    proof["instructions"] = instruction_sets.in_use() or instruction_sets.told()
    if name == "tensorrt":  # its plans may have been built anew
        known = None
    if known is not None and known.note("golden", proof):
        log.info("%s, which has reproduced the golden tiles before", backend.info)
        return backend
    try:
        check_golden_tile(backend, bundle, scenarios=scenarios, wanted=wanted, limit_s=answer_limit_s)
    except TimeoutError as error:
        left_behind.set()  # to close it would be to wait for it
        raise BackendError(
            f"{backend.info} gave no answer to the golden tile for {answer_limit_s:g} s: it hangs, or needs a longer "
            "`watchdog_s`"
        ) from error
    except BaseException:
        backend.close()
        raise
    if known is not None:
        known.write("golden", proof, {"reproduced": True})
    log.info("%s, golden tile reproduced", backend.info)
    return backend
