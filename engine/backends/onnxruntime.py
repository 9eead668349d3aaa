"""ONNX Runtime on the CPU: the independent second opinion (extra ``onnxruntime``)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from engine.backends.base import Backend, BackendInfo, ExecutionPrecision, Inputs, Output, Outputs
from engine.backends.signature import Tensor, check_signature
from engine.backends.words import said
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario

PROVIDER = "CPUExecutionProvider"
AS_WRITTEN = ("session.disable_quant_qdq", "1")
"""Otherwise pairs of Quantize and Dequantize are fused into integer kernels that round elsewhere than the graph does
(onnxruntime_session_options_config_keys.h)."""
_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
"""Element types of our graphs, by ONNX Runtime's names; any other is none of ours."""
ERRORS_ONLY = 3
"""One warning for each constant that it has no 16-bit kernel to fold, otherwise."""


class OnnxRuntimeBackend(Backend):
    """One session per scenario and one tile at a time over all threads.

    It computes what the graph says, whatever that costs, because others are judged by it: float32 in the fp32 graph,
    and in the fp16 graph where the CPU provider has no 16-bit kernel; in the int8 graph quantising, computing in
    float32 and quantising again.
    """

    def __init__(
        self,
        bundle: Bundle,
        scenarios: Iterable[Scenario],
        wanted: Iterable[Output],
        *,
        precision: ExecutionPrecision = "auto",
        threads: int | None = None,
    ) -> None:
        graph: Precision = "fp32" if precision == "auto" else precision
        self._wanted = tuple(wanted)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry(*AS_WRITTEN)
        with bundle.opened(scenarios, graph) as paths:
            self._sessions = {scenario: _session(bundle, path, options) for scenario, path in paths.items()}
        for scenario, session in self._sessions.items():
            check_signature(
                bundle, scenario, inputs=_tensors(session.get_inputs()), outputs=_tensors(session.get_outputs())
            )
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxruntime")
        self.info = BackendInfo(
            name="onnxruntime",
            library=f"onnxruntime {ort.__version__}",
            device="CPU",
            precision="f32",
            threads=threads or 0,
            slots=1,
            graph=graph,
        )

    def submit(self, scenario: Scenario, inputs: Inputs) -> Future[Outputs]:
        """Queue one tile."""
        return self._pool.submit(self._run, scenario, inputs)

    def _run(self, scenario: Scenario, inputs: Inputs) -> Outputs:
        feed = {sensor.value: values[None] for sensor, values in inputs.items()}
        try:
            answers = self._sessions[scenario].run([name.value for name in self._wanted], feed)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed on a tile of scenario {scenario}: {said(error)}") from error
        return {name: answer[0] for name, answer in zip(self._wanted, answers, strict=True)}

    def close(self) -> None:
        """Wait for the queue to empty; free the graphs."""
        self._pool.shutdown()
        self._sessions.clear()


def _session(bundle: Bundle, path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(path, options, providers=[PROVIDER])
    except Exception as error:  # its own classes have no common base
        raise BackendError(f"ONNX Runtime could not prepare the bundle {bundle.root}: {said(error)}") from error


def _tensors(nodes: Iterable[Any]) -> dict[str, Tensor]:
    return {
        node.name: (
            _DTYPES.get(node.type, np.void),
            tuple(axis if isinstance(axis, int) else None for axis in node.shape),
        )
        for node in nodes
    }
