"""INT8 graphs in a bundle: whole, verified, sharing what is there; a failure leaves the bundle as good as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

from calib.publish import WEIGHTS_NAME, int8_files, publish
from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.errors import OutputError
from engine.contract.sensors import Scenario
from tests.calib.conftest import network, rasters, run


def externalised(bundle: Bundle) -> Bundle:
    """The bundle as export writes it: one weights file that all graphs refer to."""
    root = bundle.root
    offset = 0
    with (root / "weights.bin").open("wb") as stream:
        for scenario in Scenario:
            model = network(scenario)
            for tensor in model.graph.initializer:
                content = numpy_helper.to_array(tensor).tobytes()
                if len(content) > 1024:
                    stream.write(content)
                    tensor.raw_data = content
                    external_data_helper.set_external_data(tensor, "weights.bin", offset, len(content))
                    tensor.ClearField("raw_data")
                    offset += len(content)
            onnx.save(model, root / f"{scenario}.onnx")
    manifest = replace(
        bundle.manifest,
        graphs={scenario: {"fp32": FileRef.of(root / f"{scenario}.onnx", root)} for scenario in Scenario},
        weights=(FileRef.of(root / "weights.bin", root),),
    )
    save_manifest(manifest, root)
    return Bundle.load(root)


def graphs(*, seed: int = 0) -> dict[Scenario, onnx.ModelProto]:
    """Stand-ins for INT8 graphs: the networks, of which those with the default seed share the bundle's weights."""
    return {scenario: network(scenario, seed=seed) for scenario in Scenario}


def locations(root: Path, ref: FileRef) -> set[str]:
    model = onnx.load(root / ref.path, load_external_data=False)
    stored = [tensor for tensor in model.graph.initializer if external_data_helper.uses_external_data(tensor)]
    return {external_data_helper.ExternalDataInfo(tensor).location for tensor in stored}


def test_the_bundle_gains_a_verified_int8_graph_per_scenario(bundle: Bundle) -> None:
    published = publish(externalised(bundle), graphs(seed=1), {"calib/tool": "1.0"})
    assert published.manifest.tools["calib/tool"] == "1.0"
    for scenario, model in graphs(seed=1).items():
        assert set(published.manifest.graphs[scenario]) == {"fp32", "int8"}
        inputs = {sensor.value: rasters(3)[sensor.value][None] for sensor in scenario.sensors}
        loaded = onnx.load(published.graph(scenario, "int8"))
        np.testing.assert_array_equal(run(loaded, inputs)[0], run(model, inputs)[0])
        assert locations(published.root, published.manifest.graphs[scenario]["int8"]) == {WEIGHTS_NAME}
    assert [ref.path for ref in int8_files(published.manifest)] == [
        "full.int8.onnx",
        "missing_ndsm.int8.onnx",
        "missing_rgir.int8.onnx",
        WEIGHTS_NAME,
    ]


def test_weights_that_the_bundle_holds_are_not_stored_again(bundle: Bundle) -> None:
    published = publish(externalised(bundle), graphs(), {})
    assert (published.root / WEIGHTS_NAME).stat().st_size == 0
    for scenario in Scenario:
        assert locations(published.root, published.manifest.graphs[scenario]["int8"]) == {"weights.bin"}


def test_a_second_run_replaces_the_first(bundle: Bundle) -> None:
    first = publish(externalised(bundle), graphs(seed=1), {})
    second = publish(first, graphs(seed=2), {})
    assert second.digest != first.digest
    assert [ref.path for ref in second.manifest.weights] == ["weights.bin", WEIGHTS_NAME]
    inputs = {name: values[None] for name, values in rasters(3).items()}
    loaded = onnx.load(second.graph(Scenario.FULL, "int8"))
    np.testing.assert_array_equal(run(loaded, inputs)[0], run(network(Scenario.FULL, seed=2), inputs)[0])


def test_stopping_in_the_middle_leaves_a_valid_bundle_without_int8(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(externalised(bundle), graphs(seed=1), {})

    def stop(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    others = graphs(seed=2)
    monkeypatch.setattr(onnx.checker, "check_model", stop)
    with pytest.raises(KeyboardInterrupt):
        publish(published, others, {})
    monkeypatch.undo()
    left = Bundle.load(published.root)
    assert all(set(by) == {"fp32"} for by in left.manifest.graphs.values())
    assert publish(left, graphs(seed=1), {}).digest == published.digest


def test_a_folder_that_cannot_be_written_is_an_output_error(bundle: Bundle) -> None:
    (bundle.root / WEIGHTS_NAME).mkdir()
    with pytest.raises(OutputError, match="int8 graphs could not be written"):
        publish(bundle, graphs(seed=1), {})
