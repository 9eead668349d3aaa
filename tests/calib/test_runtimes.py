"""Both libraries compute the same, and what they throw becomes one error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from calib.runtimes import Infer, onnxruntime_infer, openvino_infer, versions
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario
from tests.calib.conftest import network, rasters

Load = Callable[[onnx.ModelProto, tuple[str, ...]], Infer]


def test_the_two_runtimes_agree_on_a_floating_graph() -> None:
    inputs = {name: values[None] for name, values in rasters(1).items()}
    wanted = ("classes", "probabilities")
    first, second = (load(network(Scenario.FULL), wanted)(inputs) for load in (openvino_infer, onnxruntime_infer))
    np.testing.assert_allclose(first["probabilities"], second["probabilities"], atol=1e-5)
    assert (first["classes"] == second["classes"]).mean() > 0.999


@pytest.mark.parametrize("load", [openvino_infer, onnxruntime_infer])
def test_a_graph_that_makes_no_sense_is_a_backend_error(load: Load) -> None:
    broken = network(Scenario.FULL)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match="graph full"):
        load(broken, ("classes",))


@pytest.mark.parametrize("load", [openvino_infer, onnxruntime_infer])
def test_a_tile_of_another_size_is_a_backend_error(load: Load) -> None:
    infer = load(network(Scenario.MISSING_RGIR), ("classes",))
    with pytest.raises(BackendError, match="failed on a tile"):
        infer({"ndsm": np.zeros((1, 1, 8, 8), np.float32)})


def test_versions_name_both_libraries_and_the_cpu() -> None:
    assert set(versions()) == {"openvino", "onnxruntime", "cpu"}
    assert all(versions().values())
