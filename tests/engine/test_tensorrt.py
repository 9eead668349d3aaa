"""The TensorRT backend on an emulated device: plans, order of work, errors, and that nothing is left behind.

What a real device and the real libraries make of it is in ``tests/gpu``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from engine.backends.base import Output
from engine.backends.layout import ALIGNMENT, TileLayout
from engine.backends.options import BackendOptions
from engine.backends.resilient import open_chain
from engine.contract.bundle import Bundle, save_manifest
from engine.contract.errors import (
    BackendError,
    BackendUnavailableError,
    DeviceLostError,
    GoldenMismatchError,
    IntegrityError,
    ManifestError,
)
from engine.contract.files import FileRef
from engine.contract.plan_cache import load_hint, save_hint
from engine.contract.plans import BatchRange, Device, PlanKey
from engine.contract.sensors import Scenario, Sensor
from tests.conftest import toy_probabilities
from tests.engine.emulated_gpu import Gpu, Plan, installed
from tests.engine.plans import LIBRARIES, ORIN, TILE_PX, build, under_three_names

ALL = (Output.CLASSES, Output.CONFIDENCE, Output.PROBABILITIES)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return under_three_names(tmp_path / "bundle")


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """Installed in the place of the real thing; must be clean in the end."""
    emulated = Gpu()
    with installed(emulated, LIBRARIES):
        yield emulated
    assert emulated.complaints() == []


def tile(seed: int) -> dict[Sensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        Sensor.RGIR: rng.integers(0, 256, (3, TILE_PX, TILE_PX), np.uint8),
        Sensor.NDSM: rng.uniform(-1, 30, (1, TILE_PX, TILE_PX)).astype(np.float32),
    }


def inputs_of(scenario: Scenario, seed: int) -> dict[Sensor, np.ndarray]:
    return {sensor: values for sensor, values in tile(seed).items() if sensor in scenario.sensors}


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [True, False], ids=["cuda graphs", "kernel by kernel"])
@pytest.mark.parametrize("lazy", [True, False], ids=["as late as allowed", "at once"])
def test_scenarios_back_to_back_answer_as_numpy_does(bundle, gpu, lazy, graphs) -> None:
    gpu.lazy = lazy
    build(bundle)
    from engine.backends.tensorrt import TensorRtBackend
    from engine.backends.tensorrt_pipeline import SLOTS

    scenarios = [list(Scenario)[i % 3] for i in range(20)]
    with TensorRtBackend(bundle, Scenario, ALL, precision="fp16", cuda_graphs=graphs) as backend:
        assert backend.info.slots == SLOTS
        futures = [backend.submit(scenario, inputs_of(scenario, i)) for i, scenario in enumerate(scenarios)]
        answers = [future.result(timeout=30) for future in futures]
    for i, (scenario, answer) in enumerate(zip(scenarios, answers, strict=True)):
        expected = toy_probabilities(scenario, inputs_of(scenario, i), radius=0)
        np.testing.assert_allclose(answer[Output.PROBABILITIES], expected, atol=1e-6)
        np.testing.assert_array_equal(answer[Output.CLASSES], expected.argmax(axis=0))
    warm_ups = 3 * SLOTS
    assert gpu.launches == ["plain"] * warm_ups + ["graph" if graphs else "plain"] * 20


def test_only_wanted_outputs_come_back(bundle, gpu) -> None:
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CONFIDENCE]) as backend:
        answer = backend.infer(Scenario.FULL, tile(1))
    assert list(answer) == [Output.CONFIDENCE]
    expected = np.rint(toy_probabilities(Scenario.FULL, tile(1), radius=0).max(axis=0) * 255)
    np.testing.assert_array_equal(answer[Output.CONFIDENCE], expected)


def test_answers_are_the_receivers_own(bundle, gpu) -> None:
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        first = backend.infer(Scenario.FULL, tile(1))[Output.CLASSES]
        kept = first.copy()
        for seed in range(2, 8):
            backend.infer(Scenario.FULL, tile(seed))
    np.testing.assert_array_equal(first, kept)


def test_an_engine_that_cannot_be_captured_runs_kernel_by_kernel_and_says_so(bundle, gpu, caplog) -> None:
    gpu.capturable = False
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=ALL) as backend:
        backend.infer(Scenario.FULL, tile(1))
    assert set(gpu.launches) == {"plain"}
    assert "full runs kernel by kernel, not as a CUDA graph" in caplog.text
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in caplog.text


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_tile_of_the_wrong_shape_fails_alone(bundle, gpu) -> None:
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        wrong = {**tile(1), Sensor.NDSM: np.zeros((1, 32, 32), np.float32)}
        futures = [backend.submit(Scenario.FULL, inputs) for inputs in (tile(1), wrong, tile(2))]
        with pytest.raises(BackendError, match=r"full takes ndsm as float32 \[1, 64, 64\], received .* \[1, 32, 32\]"):
            futures[1].result(timeout=30)
        for seed, future in ((1, futures[0]), (2, futures[2])):
            expected = toy_probabilities(Scenario.FULL, tile(seed), radius=0).argmax(axis=0)
            np.testing.assert_array_equal(future.result(timeout=30)[Output.CLASSES], expected)


@pytest.mark.parametrize("call", ["memcpy_htod_async", "cuGraphLaunch", "record", "memcpy_dtoh_async", "synchronize"])
def test_a_failed_call_fails_its_tile_and_no_other(bundle, gpu, call) -> None:
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        gpu.fail_next = call
        with pytest.raises(BackendError, match="emulated failure") as caught:
            backend.infer(Scenario.FULL, tile(1))
        assert caught.value.__cause__ is not None
        for seed in range(2, 9):
            answer = backend.infer(Scenario.FULL, tile(seed))[Output.CLASSES]
            np.testing.assert_array_equal(answer, toy_probabilities(Scenario.FULL, tile(seed), 0).argmax(axis=0))


@pytest.mark.parametrize(
    "call", ["Runtime", "create_execution_context", "DeviceAllocation", "pagelocked_empty", "Stream", "Event"]
)
def test_a_failure_while_opening_leaves_nothing_on_the_device(bundle, gpu, call) -> None:
    build(bundle)
    gpu.fail_next = call
    with pytest.raises(BackendError, match="emulated failure"):
        BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES])


def test_a_plan_for_another_tile_size_is_refused_and_leaves_nothing(bundle, gpu) -> None:
    build(bundle, content=lambda plan: Plan(**{**vars(plan), "tile_px": 32}).encode())
    with pytest.raises(BackendError, match=r"tensorrt 10\.3\.0 refused the shape of"):
        BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES])


def test_inputs_that_come_again_are_fetched_from_where_they_lie(bundle, gpu) -> None:
    build(bundle)
    buffers = [tile(0) for _ in range(3)]  # of a run
    with BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        for seed in range(27):
            buffer, scenario = buffers[seed % 3], list(Scenario)[seed // 3 % 3]
            for sensor, values in tile(seed).items():
                buffer[sensor][:] = values
            inputs = {sensor: buffer[sensor] for sensor in scenario.sensors}
            expected = toy_probabilities(scenario, inputs, 0).argmax(axis=0)
            np.testing.assert_array_equal(backend.infer(scenario, inputs)[Output.CLASSES], expected)
        assert gpu.registered >= 6


def test_no_more_memory_is_page_locked_than_a_run_needs(bundle, gpu, monkeypatch) -> None:
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        monkeypatch.setattr(importlib.import_module("engine.backends.tensorrt_pipeline"), "MOST_LOCKED", 6)
        before = gpu.registered
        for run in range(5):  # each with buffers of its own
            buffers = [tile(10 * run + number) for number in range(3)]
            for seed in range(12):
                inputs = buffers[seed % 3]
                expected = toy_probabilities(Scenario.FULL, inputs, 0).argmax(axis=0)
                np.testing.assert_array_equal(backend.infer(Scenario.FULL, inputs)[Output.CLASSES], expected)
        assert gpu.registered - before >= 12
        assert len(gpu.locked) <= 6 + 3  # and the slots


def test_memory_that_cannot_be_page_locked_is_copied(bundle, gpu) -> None:
    build(bundle)
    inputs = tile(3)
    expected = toy_probabilities(Scenario.FULL, inputs, 0).argmax(axis=0)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        before, gpu.fail_next = gpu.registered, "register_host_memory"
        for _ in range(6):
            np.testing.assert_array_equal(backend.infer(Scenario.FULL, inputs)[Output.CLASSES], expected)
        assert gpu.fail_next is None
        assert gpu.registered == before


def test_closing_twice_does_nothing_and_a_closed_backend_takes_no_tile(bundle, gpu) -> None:
    build(bundle)
    backend = BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])
    last = backend.submit(Scenario.FULL, tile(1))
    backend.close()
    backend.close()
    assert last.done()
    with pytest.raises(BackendError, match="closed"):
        backend.submit(Scenario.FULL, tile(1))


def test_a_plan_that_computes_something_else_is_refused(bundle, gpu) -> None:
    with np.load(bundle.root / "golden.npz") as file:
        golden = dict(file)
    golden["full/classes"] = (golden["full/classes"] + 1) % 4
    np.savez_compressed(bundle.root / "golden.npz", **golden)
    changed = FileRef.of(bundle.root / "golden.npz", bundle.root)
    save_manifest(replace(bundle.manifest, golden=changed), bundle.root)
    bundle = Bundle.load(bundle.root)
    build(bundle)
    with pytest.raises(GoldenMismatchError, match=r"fp16 graph, f16\) does not reproduce the golden tile"):
        BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


@pytest.mark.parametrize("call", ["memcpy_htod_async", "cuGraphLaunch", "synchronize", "execute_async_v3"])
@pytest.mark.parametrize("code", [700, 719, 214])
def test_a_sticky_error_says_that_only_a_new_process_helps(bundle, gpu, call, code) -> None:
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        gpu.fail_next, gpu.fail_code = "cuGraphLaunch" if call == "execute_async_v3" else call, code
        answers = [backend.submit(Scenario.FULL, tile(seed)) for seed in range(8)]
        for answer in answers:
            with pytest.raises(
                DeviceLostError, match=rf"CUDA error {code}.*restart the process to use the GPU"
            ) as lost:
                answer.result(timeout=30)
            assert lost.value.code == code


def test_a_sticky_error_while_opening_says_so_too(bundle, gpu) -> None:
    build(bundle)
    gpu.fail_next, gpu.fail_code = "execute_async_v3", 700
    with pytest.raises(DeviceLostError, match="restart the process"):
        BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


def test_an_ordinary_failure_is_not_called_a_lost_device(bundle, gpu) -> None:
    build(bundle)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        gpu.fail_next, gpu.fail_code = "memcpy_htod_async", 0
        with pytest.raises(BackendError) as failed:
            backend.infer(Scenario.FULL, tile(1))
        assert not isinstance(failed.value, DeviceLostError)


def test_a_lost_device_hands_over_to_openvino_at_once_and_tells_run_json(bundle, gpu, caplog) -> None:
    build(bundle)
    with open_chain(BackendOptions(), bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        assert backend.info.name == "tensorrt"
        gpu.fail_next, gpu.fail_code = "cuGraphLaunch", 700
        for seed in range(8):
            answer = backend.infer(Scenario.FULL, tile(seed))[Output.CLASSES]
            expected = toy_probabilities(Scenario.FULL, tile(seed), radius=0).argmax(axis=0)
            assert (answer == expected).mean() > 0.99, "OpenVINO may compute in bfloat16"
        assert backend.info.name == "openvino"
        first, second = backend.events
    assert (first.backend, str(first.what)) == ("tensorrt", "lost")
    assert first.detail.endswith("restart the process to use the GPU again")
    assert (second.backend, str(second.what)) == ("openvino", "opened")
    assert "restart the process to use the GPU again" in caplog.text


def test_a_library_that_does_not_start_speaks_for_itself(bundle, gpu) -> None:
    build(bundle)
    gpu.starts = False
    assert "tensorrt 10.3.0 does not start on this device" in (message := refused(bundle))
    assert "CUDA initialization failure with error: 35" in message


def test_tiles_that_race_with_closing_are_answered_or_refused(bundle, gpu) -> None:
    build(bundle)
    backend = BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])
    answers: list[Future] = []
    refusals: list[BackendError] = []

    def send() -> None:
        try:
            for seed in range(500):
                answers.append(backend.submit(Scenario.FULL, tile(seed % 3)))
        except BackendError as error:
            refusals.append(error)

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    while len(answers) < 20:
        time.sleep(0.001)
    backend.close()
    for sender in senders:
        sender.join(30)
    assert len(refusals) == 3
    assert "has been closed" in str(refusals[0])
    assert all(answer.done() for answer in answers)
    assert sum(answer.exception() is None for answer in answers) >= 20


def test_a_worker_that_dies_leaves_no_tile_waiting(bundle, gpu, monkeypatch, caplog) -> None:
    build(bundle)
    backend = BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])
    from engine.backends import tensorrt

    def break_down(*_arguments: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(tensorrt, "_attempt", break_down)
    answers = []
    with contextlib.suppress(BackendError):  # the later ones may find it dead already
        for seed in range(6):
            answers.append(backend.submit(Scenario.FULL, tile(seed)))
    assert answers
    for answer in answers:
        with pytest.raises(BackendError, match="ended before it answered"):
            answer.result(timeout=30)
    backend.close()
    with pytest.raises(BackendError, match="thread of the TensorRT backend has ended"):
        backend.submit(Scenario.FULL, tile(1))
    assert "a mistake of ours" in caplog.text


# --- plans -----------------------------------------------------------------------------------------------------------


def refused(bundle: Bundle, **options: object) -> str:
    with pytest.raises(BackendUnavailableError) as caught:
        BackendOptions(name="tensorrt", **options).open(bundle, scenarios=Scenario, wanted=[Output.CLASSES])
    return str(caught.value)


def test_without_plans_the_build_command_is_named(bundle, gpu) -> None:
    assert f"python -m export.build --bundle {bundle.root} --precision fp16" in refused(bundle)
    assert f"python -m export.build --bundle {bundle.root} --precision int8" in refused(bundle, precision="int8")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda key: replace(key, library_version="10.9.0"), "was built by tensorrt 10.9.0, found 10.3.0"),
        (lambda key: replace(key, target=replace(ORIN, compute_capabilities=(90,))), r"was built for sm_90, this is"),
        (lambda key: replace(key, source_sha256="0" * 64), "another graph or other weights"),
        (lambda key: replace(key, platform="win32-AMD64"), "win32-AMD64"),
        (lambda key: replace(key, batch=BatchRange(minimum=4, optimum=4, maximum=8)), "4 to 8 tiles at a time"),
    ],
    ids=["other release", "other device", "other graph", "other system", "other batch"],
)
def test_a_stale_or_foreign_plan_is_never_loaded(bundle, gpu, change, why) -> None:
    build(bundle, change=change)
    message = refused(bundle, precision="fp16")
    assert why in message
    assert "python -m export.build" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"x" * path.stat().st_size),
        Path.unlink,
    ],
    ids=["truncated", "overwritten", "deleted"],
)
def test_a_damaged_plan_is_refused_before_the_library_sees_it(bundle, gpu, damage) -> None:
    stored = build(bundle)
    damage(stored[Scenario.MISSING_RGIR].path)
    with pytest.raises(IntegrityError, match=r"missing_rgir-fp16-.*python -m export\.build"):
        BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES])


def test_a_plan_of_another_scenario_is_refused(bundle, gpu) -> None:
    def swapped(plan: Plan) -> bytes:
        return Plan(**{**vars(plan), "name": "missing_rgir-fp16-000000000000"}).encode()

    build(bundle, content=swapped)
    with pytest.raises(IntegrityError, match="the engine in it is named 'missing_rgir-fp16-000000000000'"):
        BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


def test_a_plan_with_other_tensors_is_refused(bundle, gpu) -> None:
    build(bundle, content=lambda plan: Plan(**{**vars(plan), "tensors": ("rgir", "classes")}).encode())
    with pytest.raises(IntegrityError, match=r"the engine has classes, rgir"):
        BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])


def test_what_the_library_says_of_a_plan_it_refuses_is_passed_on(bundle, gpu) -> None:
    build(bundle, content=lambda plan: b"from the future")
    message = refused(bundle)
    assert "tensorrt 10.3.0 does not load it on this device: the magic tag is not a plan's" in message


def test_plans_may_lie_in_another_folder(bundle, gpu, tmp_path) -> None:
    build(bundle, folder=tmp_path / "elsewhere")
    with BackendOptions(name="tensorrt", plans=tmp_path / "elsewhere").open(
        bundle, scenarios=Scenario, wanted=[Output.CLASSES]
    ) as backend:
        assert backend.info.graph == "fp16"
    assert f"--cache {tmp_path / 'nowhere'}" in refused(bundle, plans=tmp_path / "nowhere")


def test_auto_takes_fp16_unless_int8_is_measured_faster(bundle, gpu) -> None:
    fp16, int8 = build(bundle, "fp16"), build(bundle, "int8")
    with BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        assert (backend.info.graph, backend.info.precision) == ("fp16", "f16")
    orin = Device(name=gpu.name, compute_capability=87, multiprocessors=gpu.multiprocessors)
    fp16[Scenario.FULL].with_latency(2.0, orin)
    int8[Scenario.FULL].with_latency(1.5, orin)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        assert backend.info.graph == "int8"


def test_auto_takes_a_precision_that_every_scenario_has(bundle, gpu) -> None:
    build(bundle, "int8")
    build(bundle, "fp16")[Scenario.MISSING_RGIR].path.with_suffix(".json").unlink()
    with BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        assert backend.info.graph == "int8"


def test_a_precision_without_a_graph_is_refused(toy_bundle, gpu) -> None:
    with pytest.raises(ManifestError, match="has no int8 graph"):
        BackendOptions(name="tensorrt", precision="int8").open(toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES])


# --- TensorRT-RTX ----------------------------------------------------------------------------------------------------


def rtx(key: PlanKey) -> PlanKey:
    return replace(key, library="tensorrt_rtx", library_version="1.7.1")


@pytest.fixture
def rtx_gpu() -> Iterator[Gpu]:
    emulated = Gpu()
    with installed(emulated, {"tensorrt_rtx": "1.7.1"}):
        yield emulated
    assert emulated.complaints() == []


def test_rtx_keeps_compiled_kernels_beside_the_plan(bundle, rtx_gpu, caplog) -> None:
    stored = build(bundle, change=rtx)[Scenario.FULL].path
    for expected in (None, "kernels are compiled again"):
        with (
            caplog.at_level(logging.INFO),
            BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend,
        ):
            assert backend.info.library == "tensorrt_rtx 1.7.1"
        kept = stored.with_suffix(".runtime_cache")
        assert load_hint(kept, "") == b"cache of Emulated GPU"
        assert expected is None or expected in caplog.text
        save_hint(kept, b"cache of another device", "")


@pytest.mark.parametrize("content", [b"", b"cache of Emulated GPU", b"\0" * 1000])
def test_a_damaged_runtime_cache_never_reaches_the_library(bundle, rtx_gpu, caplog, content) -> None:
    kept = build(bundle, change=rtx)[Scenario.FULL].path.with_suffix(".runtime_cache")
    kept.write_bytes(content)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]):
        pass
    assert f"kernels are compiled again: {kept} is damaged" in caplog.text
    assert load_hint(kept, "") == b"cache of Emulated GPU"


def test_a_runtime_cache_that_the_library_chokes_on_stops_no_engine(bundle, rtx_gpu, caplog, monkeypatch) -> None:
    kept = build(bundle, change=rtx)[Scenario.FULL].path.with_suffix(".runtime_cache")
    save_hint(kept, b"cache of Emulated GPU", "")

    def choke(*_arguments: object) -> None:
        raise RuntimeError("not today")

    for method in ("deserialize", "serialize"):
        monkeypatch.setattr(sys.modules["tensorrt_rtx"].IRuntimeCache, method, choke)
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        backend.infer(Scenario.FULL, tile(1))
    assert "kernels are compiled again" in caplog.text
    assert "compiled kernels are not kept" in caplog.text


def test_rtx_reasons_for_refusing_a_plan_are_named(bundle, rtx_gpu) -> None:
    build(bundle, change=rtx, content=lambda plan: b"for another device")
    assert "(UNSUPPORTED_CC, MALFORMED_ENGINE)" in refused(bundle)


def test_a_folder_that_cannot_be_written_costs_the_cache_only(bundle, rtx_gpu, caplog) -> None:
    stored = build(bundle, change=rtx)[Scenario.FULL].path
    stored.with_suffix(".runtime_cache").mkdir()
    (stored.with_suffix(".runtime_cache") / "in the way").touch()
    with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]):
        pass
    assert "kernels are compiled again" in caplog.text
    assert "compiled kernels are not kept" in caplog.text


def test_tensorrt_is_preferred_to_rtx_and_each_reason_is_told(bundle) -> None:
    gpu = Gpu()
    with installed(gpu, {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1"}):
        message = refused(bundle)
        assert "for tensorrt 10.3.0" in message
        assert "for tensorrt_rtx 1.7.1" in message
        build(bundle, change=rtx)
        with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=ALL) as backend:
            assert backend.info.library == "tensorrt_rtx 1.7.1"
        build(bundle)
        with BackendOptions(name="tensorrt").open(bundle, scenarios=[Scenario.FULL], wanted=ALL) as backend:
            assert backend.info.library == "tensorrt 10.3.0"
    assert gpu.complaints() == []


# --- auto ------------------------------------------------------------------------------------------------------------


def test_auto_runs_tensorrt_where_it_can(bundle, gpu) -> None:
    build(bundle)
    with BackendOptions().open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
        assert (backend.info.name, backend.info.device) == ("tensorrt", "Emulated GPU (sm_87, 16 multiprocessors)")


@pytest.mark.parametrize("case", ["no device", "driver silent", "no library", "no plans"])
def test_auto_falls_back_on_openvino_and_says_why(bundle, caplog, case) -> None:
    gpu = Gpu(devices=0 if case == "no device" else 1, fail_next="init" if case == "driver silent" else None)
    if case == "no library":
        build(bundle)
    with (
        caplog.at_level(logging.INFO),
        installed(gpu, {} if case == "no library" else LIBRARIES),
        BackendOptions().open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend,
    ):
        assert backend.info.name == "openvino"
    reason = {
        "no device": "the driver lists none",
        "driver silent": "no CUDA-capable device is detected",
        "no library": "tensorrt cannot be imported",
        "no plans": "python -m export.build",
    }[case]
    told = [record for record in caplog.records if record.message.startswith("OpenVINO runs, not TensorRT: ")]
    assert [record.levelname for record in told] == ["INFO"]
    assert reason in told[0].message
    assert gpu.complaints() == []


def test_auto_warns_when_a_plan_is_damaged(bundle, gpu, caplog) -> None:
    build(bundle)[Scenario.FULL].path.write_bytes(b"plan")
    with BackendOptions().open(bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend:
        assert backend.info.name == "openvino"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_auto_without_pycuda_runs_openvino(toy_bundle, caplog, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.backends.tensorrt", None)
    with (
        caplog.at_level(logging.INFO),
        BackendOptions().open(toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES]) as backend,
    ):
        assert backend.info.name == "openvino"
    assert "gemmnet-edge[gpu]" in caplog.text


# --- memory of a tile ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [(Output.CLASSES, Output.CONFIDENCE), (Output.PROBABILITIES,), ALL])
def test_tensors_of_a_tile_neither_overlap_nor_leave_their_memory(toy_bundle, wanted) -> None:
    layout = TileLayout.of(toy_bundle.manifest, wanted)
    spans = sorted((*layout.inputs.values(), *layout.outputs.values()), key=lambda span: span.offset)
    assert all(span.offset % ALIGNMENT == 0 for span in spans)
    assert all(first.stop <= second.offset for first, second in pairwise(spans))
    assert spans[-1].stop <= layout.device_bytes
    host = np.zeros(layout.host_bytes, np.uint8)
    for span in (*layout.inputs.values(), *(layout.outputs[name] for name in wanted)):
        span.view(host)[:] = 1
    assert host.sum() > 0
    both = layout.upload(Sensor)
    assert (both.start, both.stop) == (layout.inputs[Sensor.RGIR].offset, layout.inputs[Sensor.NDSM].stop)
    assert layout.upload([Sensor.NDSM]).start == layout.inputs[Sensor.NDSM].offset
    for name, span in layout.outputs.items():
        inside = layout.download.start <= span.offset and span.stop <= layout.download.stop
        assert inside == (name in wanted)


def test_a_tiles_copies_carry_little_more_than_its_tensors(toy_bundle) -> None:
    layout = TileLayout.of(toy_bundle.manifest, [Output.CLASSES, Output.CONFIDENCE])
    area = TILE_PX * TILE_PX
    up, down = layout.upload(Sensor), layout.download
    assert 7 * area <= up.stop - up.start <= 7 * area + ALIGNMENT
    assert 2 * area <= down.stop - down.start <= 2 * area + ALIGNMENT
