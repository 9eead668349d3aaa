"""Backends answer what the graph means, and are refused when they do not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.backends import open_backend
from engine.backends.base import Output
from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.errors import BackendError, BackendUnavailableError, GoldenMismatchError
from engine.contract.sensors import Scenario, Sensor
from tests.conftest import toy_probabilities

BACKENDS = ["openvino", "onnxruntime"]


def tile(seed: int = 3) -> dict[Sensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        Sensor.RGIR: rng.integers(0, 256, (3, 64, 64), np.uint8),
        Sensor.NDSM: rng.uniform(-1, 30, (1, 64, 64)).astype(np.float32),
    }


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("scenario", Scenario)
def test_all_outputs_equal_numpy(name, scenario, wide_bundle) -> None:
    inputs = {sensor: values for sensor, values in tile().items() if sensor in scenario.sensors}
    expected = toy_probabilities(scenario, inputs, radius=6)
    with open_backend(name, wide_bundle, scenarios=[scenario], wanted=list(Output), precision="fp32") as backend:
        answer = backend.infer(scenario, inputs)
    np.testing.assert_allclose(answer[Output.PROBABILITIES], expected, atol=1e-5)
    assert (answer[Output.CLASSES] == expected.argmax(axis=0)).mean() > 0.9995
    assert np.abs(answer[Output.CONFIDENCE].astype(int) - np.rint(expected.max(axis=0) * 255)).max() <= 1


@pytest.mark.parametrize("name", BACKENDS)
def test_tiles_in_flight_do_not_mix(name, toy_bundle) -> None:
    tiles = [tile(seed) for seed in range(24)]
    scenarios = [list(Scenario)[i % 3] for i in range(24)]
    with open_backend(name, toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES], precision="fp32") as backend:
        futures = [
            backend.submit(scenario, {sensor: t[sensor] for sensor in scenario.sensors})
            for scenario, t in zip(scenarios, tiles, strict=True)
        ]
        for scenario, t, future in zip(scenarios, tiles, futures, strict=True):
            expected = toy_probabilities(scenario, t, radius=0).argmax(axis=0)
            assert (future.result()[Output.CLASSES] == expected).mean() > 0.9995


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_that_answers_differently_is_refused(name, toy_bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "other"))
    with np.load(root / "golden.npz") as file:
        golden = dict(file)
    golden["missing_ndsm/classes"] = (golden["missing_ndsm/classes"] + 1) % 4
    np.savez_compressed(root / "golden.npz", **golden)
    manifest = toy_bundle.manifest
    save_manifest(
        type(manifest)(**{**vars(manifest), "golden": FileRef.of(root / "golden.npz", root)}),
        root,
    )
    bundle = Bundle.load(root)
    with open_backend(name, bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES], precision="fp32"):
        pass
    with pytest.raises(GoldenMismatchError, match=r"scenario missing_ndsm, output classes differs by 1 of the pixels"):
        open_backend(name, bundle, scenarios=Scenario, wanted=[Output.CLASSES], precision="fp32")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_failure_of_the_library_reaches_the_caller(name, toy_bundle) -> None:
    with open_backend(name, toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        wrong = {Sensor.RGIR: np.zeros((3, 32, 32), np.uint8), Sensor.NDSM: np.zeros((1, 64, 64), np.float32)}
        with pytest.raises(BackendError, match="scenario full"):
            backend.infer(Scenario.FULL, wrong)
        right = tile()
        assert backend.infer(Scenario.FULL, right)[Output.CLASSES].shape == (64, 64)


def test_a_missing_library_names_its_install_command(toy_bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.backends.onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match="pip install onnxruntime"):
        open_backend("onnxruntime", toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


def test_fp32_is_really_fp32(toy_bundle) -> None:
    with open_backend(
        "openvino", toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES], precision="fp32", threads=1
    ) as backend:
        assert backend.info.precision == "f32"
        assert backend.info.threads == 1
