"""The backend on a real device: right answers, in order, from replayed graphs, without leaking or tripping."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from concurrent.futures import Future

import numpy as np
import pytest
import rasterio

from engine import demo
from engine.backends.base import Output
from engine.backends.golden import tolerance_of
from engine.backends.options import BackendOptions
from engine.contract.bundle import Precision
from engine.contract.errors import BackendError, IntegrityError
from engine.contract.plan_cache import CACHE_NAME, stored_plans
from engine.contract.sensors import Scenario, Sensor
from engine.run import main as run_engine
from tests.gpu.conftest import WANTED, infer
from tests.gpu.smoke import free_mib

SWITCHES = 300
STEADY_TILES = 1000
GROWTH_MIB = 4
"""What drivers allocate late for themselves; a leaked tile of any kind would be a thousand times its size."""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("scenario", Scenario)
def test_answers_equal_onnxruntime(built, tiles, reference, scenario: Scenario, precision: Precision) -> None:
    if precision not in built.precisions:
        pytest.skip(f"the demo bundle has no {precision} graphs")
    with BackendOptions(name="tensorrt", precision=precision, plans=built.plans).open(
        built.bundle, scenarios=[scenario], wanted=WANTED
    ) as backend:
        assert (backend.info.name, backend.info.graph) == ("tensorrt", precision)
        answers = [infer(backend, scenario, tile) for tile in tiles]
    limit = tolerance_of(precision, backend.info.precision)
    for answer, expected in zip(answers, reference[precision][scenario], strict=True):
        same = (answer[Output.CLASSES] == expected[Output.CLASSES]).mean()
        difference = np.abs(answer[Output.PROBABILITIES] - expected[Output.PROBABILITIES]).max()
        print(f"{precision} {scenario}: same class {same:.4%}, largest difference of a probability {difference:.4g}")
        assert same >= limit.class_agreement
        assert difference <= limit.max_probability
        confidence = np.rint(answer[Output.PROBABILITIES].max(axis=0) * 255)
        assert np.abs(answer[Output.CONFIDENCE].astype(int) - confidence).max() <= 1


def test_a_replayed_graph_answers_as_a_plain_enqueue_does(built, tiles) -> None:
    from engine.backends.tensorrt import TensorRtBackend

    answers = {}
    for cuda_graphs in (False, True):
        with TensorRtBackend(built.bundle, Scenario, WANTED, plans=built.plans, cuda_graphs=cuda_graphs) as backend:
            answers[cuda_graphs] = [
                infer(backend, scenario, tile)
                for scenario in Scenario
                for tile in tiles
                for _ in range(backend.info.slots)  # each slot has a graph of its own
            ]
    for plain, replayed in zip(answers[False], answers[True], strict=True):
        for output in WANTED:
            np.testing.assert_array_equal(plain[output], replayed[output])


def test_every_engine_was_captured(built, caplog) -> None:
    with BackendOptions(name="tensorrt", plans=built.plans).open(built.bundle, scenarios=Scenario, wanted=WANTED):
        pass
    assert "kernel by kernel" not in caplog.text


def test_back_to_back_switches_of_scenario_keep_every_answer_with_its_tile(built, tensorrt, tiles) -> None:
    expected = {
        (scenario, index): infer(tensorrt, scenario, tile)[Output.CLASSES]
        for scenario in Scenario
        for index, tile in enumerate(tiles)
    }
    rng = np.random.default_rng(0)
    sent: list[tuple[Scenario, int, Future]] = []
    for _ in range(SWITCHES):
        scenario, index = list(Scenario)[rng.integers(3)], int(rng.integers(len(tiles)))
        inputs = {sensor: tiles[index][sensor] for sensor in scenario.sensors}
        sent.append((scenario, index, tensorrt.submit(scenario, inputs)))
    for scenario, index, future in sent:
        np.testing.assert_array_equal(future.result(timeout=60)[Output.CLASSES], expected[scenario, index])


def test_a_thousand_tiles_take_no_more_device_memory_than_thirty(built, tensorrt, tiles) -> None:
    def fly(count: int) -> None:
        for number in range(count):
            infer(tensorrt, list(Scenario)[number % 3], tiles[number % len(tiles)])

    fly(30)
    before = free_mib()
    fly(STEADY_TILES)
    assert before - free_mib() <= GROWTH_MIB


def test_closing_gives_the_device_memory_back(built, tiles) -> None:
    def once() -> None:
        with BackendOptions(name="tensorrt", plans=built.plans).open(
            built.bundle, scenarios=Scenario, wanted=WANTED
        ) as backend:
            infer(backend, Scenario.FULL, tiles[0])
        gc.collect()

    once()
    before = free_mib()
    for _ in range(3):
        once()
    assert before - free_mib() <= GROWTH_MIB


def test_a_tile_of_the_wrong_shape_fails_alone(built, tensorrt, tiles) -> None:
    expected = infer(tensorrt, Scenario.FULL, tiles[0])[Output.CLASSES]
    wrong = {**tiles[0], Sensor.NDSM: np.zeros((1, 32, 32), np.float32)}
    with pytest.raises(BackendError, match="full takes ndsm"):
        infer(tensorrt, Scenario.FULL, wrong)
    np.testing.assert_array_equal(infer(tensorrt, Scenario.FULL, tiles[0])[Output.CLASSES], expected)


def test_the_backend_opens_again_after_it_was_closed_with_tiles_in_flight(built, tiles) -> None:
    for _ in range(2):
        backend = BackendOptions(name="tensorrt", plans=built.plans).open(
            built.bundle, scenarios=Scenario, wanted=WANTED
        )
        flying = [backend.submit(Scenario.FULL, tiles[0]) for _ in range(8)]
        backend.close()
        assert all(future.result(timeout=60)[Output.CLASSES].any() for future in flying)


def test_tiles_may_come_from_any_thread(built, tensorrt, tiles) -> None:
    expected = infer(tensorrt, Scenario.FULL, tiles[0])[Output.CLASSES]
    answers: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: answers.append(infer(tensorrt, Scenario.FULL, tiles[0])[Output.CLASSES]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)


def test_bytes_that_are_no_engine_are_refused_by_name(built, tmp_path) -> None:
    from engine.backends.tensorrt import TensorRtBackend

    plans = tmp_path / "plans"
    plans.mkdir()
    for plan in stored_plans(built.plans):
        (plans / f"{plan.path.stem}.json").write_bytes(plan.path.with_suffix(".json").read_bytes())
        (plans / plan.path.name).write_bytes(b"x" * plan.record.plan.size_bytes)
    with pytest.raises(IntegrityError, match="is not the plan that was built"):
        TensorRtBackend(built.bundle, Scenario, WANTED, plans=plans)


@pytest.mark.parametrize("sensors", ["rgir,ndsm", "rgir", "ndsm"])
def test_a_raster_streams_through_the_command(built, tmp_path, sensors: str) -> None:
    bundle = shutil.copytree(built.bundle.root, tmp_path / "bundle", ignore=shutil.ignore_patterns(CACHE_NAME))
    shutil.copytree(built.plans, bundle / CACHE_NAME)
    maps = {}
    for name in ("tensorrt", "openvino"):
        options = ["--bundle", str(bundle), "--sensors", sensors, "--quiet", "--output", str(tmp_path / name)]
        assert run_engine([*options, "--backend", name]) == 0
        ran = json.loads((tmp_path / name / "run.json").read_text())["backend"]["name"]
        assert ran == name
        with rasterio.open(tmp_path / name / "classes.tif") as classes, rasterio.open(demo.SCENE[Sensor.RGIR]) as scene:
            assert (classes.width, classes.height, classes.crs) == (scene.width, scene.height, scene.crs)
            maps[name] = classes.read(1)
    assert (maps["tensorrt"] == maps["openvino"]).mean() >= 0.95
