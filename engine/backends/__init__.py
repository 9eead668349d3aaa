"""Backends: how a scenario's graph is executed.

:func:`open_backend` is the only place that chooses one, and none is handed out before it has reproduced the bundle's
golden tile.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from typing import Literal

from engine.backends.base import Backend, ExecutionPrecision, Output
from engine.backends.golden import check_golden_tile
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendUnavailableError
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)

BackendName = Literal["auto", "openvino", "onnxruntime"]

_CLASSES = {
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
) -> Backend:
    """Compile the graphs of ``scenarios`` and check each against the golden tile.

    ``auto`` is OpenVINO, the fastest on every CPU measured so far.

    Raises:
        BackendUnavailableError: the library is not installed.
        BackendError: the library cannot compile a graph.
        GoldenMismatchError: it compiles but answers something else than the model that was exported.
    """
    module_name, class_name, install = _CLASSES["openvino" if name == "auto" else name]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"the backend {name} needs a library that cannot be imported ({error}): {install}"
        ) from error
    scenarios, wanted = tuple(scenarios), tuple(wanted)
    backend: Backend = getattr(module, class_name)(bundle, scenarios, wanted, precision=precision, threads=threads)
    try:
        check_golden_tile(backend, bundle, scenarios=scenarios, wanted=wanted)
    except BaseException:
        backend.close()
        raise
    log.info("%s on %s, %s, golden tile reproduced", backend.info.library, backend.info.device, backend.info.precision)
    return backend
