"""Pick the graph by the sensors that a request holds. Runs in Triton's Python backend, beside the three graphs."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

MODELS = {("rgir", "ndsm"): ("full", 1), ("rgir",): ("missing_ndsm", 2), ("ndsm",): ("missing_rgir", 3)}
"""By the sensors given: the model, and what ``provenance`` then says."""


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in ("rgir", "ndsm")}
        given = {name: tensor for name, tensor in found.items() if tensor is not None}
        if not given:
            told = pb_utils.TritonError("a request holds rgir, ndsm or both, received neither: send one")
            return pb_utils.InferenceResponse(error=told)
        model, provenance = MODELS[tuple(given)]
        wanted = [name for name in request.requested_output_names() if name != "provenance"]
        answer = pb_utils.InferenceRequest(
            model_name=model, requested_output_names=wanted or ["classes"], inputs=list(given.values())
        ).exec()
        if answer.has_error():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(answer.error().message()))
        tensors = [pb_utils.get_output_tensor_by_name(answer, name) for name in wanted]
        if "provenance" in request.requested_output_names():
            batch = next(iter(given.values())).shape()[0]
            tensors.append(pb_utils.Tensor("provenance", np.full((batch, 1), provenance, np.uint8)))
        return pb_utils.InferenceResponse(output_tensors=tensors)
