"""The chain of backends: real ones on the toy graphs, behind a double that fails or hangs on chosen tiles."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engine.backends import resilient
from engine.backends.base import Backend, Output
from engine.backends.options import BackendOptions
from engine.backends.resilient import ResilientBackend, What
from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.errors import BackendError, BackendUnavailableError
from engine.contract.sensors import Scenario, Sensor
from engine.deadline import left_behind
from tests.conftest import toy_probabilities

ROOT = Path(__file__).parent.parent.parent
HANG_GUARD_S = 60


class Faulty(Backend):
    """A real backend that fails on some submissions, and keeps silent from others on."""

    def __init__(
        self, inner: Backend, *, fails: Collection[int] = (), silent_from: int = 1 << 30, blocks: bool = False
    ) -> None:
        self.inner, self.info = inner, inner.info
        self.fails, self.silent_from, self.blocks = fails, silent_from, blocks
        self.submitted, self.closed = 0, False
        self.freed = threading.Event()

    def submit(self, scenario, inputs):
        number, self.submitted = self.submitted, self.submitted + 1
        if number >= self.silent_from:
            if self.blocks:
                self.freed.wait(HANG_GUARD_S)
            return Future()
        if number in self.fails:
            failed: Future = Future()
            failed.set_exception(BackendError("CUDA error 700: an illegal memory access was encountered"))
            return failed
        return self.inner.submit(scenario, inputs)

    def close(self) -> None:
        self.closed = True
        self.inner.close()


class Workshop:
    """Opens backends and remembers them; ``faults`` holds the options of each one opened by a name, in order."""

    def __init__(self, bundle: Bundle, **faults: list[dict]) -> None:
        self.bundle, self.faults = bundle, faults
        self.opened: list[Faulty] = []

    def opener(self, name: str) -> Callable[[], Backend]:
        def build() -> Backend:
            planned = self.faults.get(name, [])
            before = sum(each.info.name == name for each in self.opened)
            options = planned[before] if before < len(planned) else {}
            if "refuses" in options:
                raise options["refuses"]
            inner = BackendOptions(name=name, precision="fp32", threads=1).open(
                self.bundle, scenarios=Scenario, wanted=[Output.CLASSES]
            )
            self.opened.append(Faulty(inner, **options))
            return self.opened[-1]

        return build

    def chain(self, *names: str, watchdog_s: float = 30.0) -> ResilientBackend:
        return ResilientBackend(
            self.opener(names[0]), {name: self.opener(name) for name in names}, watchdog_s=watchdog_s
        )


def tile(seed: int) -> dict[Sensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        Sensor.RGIR: rng.integers(0, 256, (3, 64, 64), np.uint8),
        Sensor.NDSM: rng.uniform(-1, 30, (1, 64, 64)).astype(np.float32),
    }


def assert_every_tile_is_answered(backend: Backend, tiles: int = 24) -> None:
    scenarios = [list(Scenario)[i % 3] for i in range(tiles)]
    inputs = [{sensor: tile(i)[sensor] for sensor in scenario.sensors} for i, scenario in enumerate(scenarios)]
    answers = [backend.submit(scenario, each) for scenario, each in zip(scenarios, inputs, strict=True)]
    for scenario, each, answer in zip(scenarios, inputs, answers, strict=True):
        expected = toy_probabilities(scenario, each, radius=0).argmax(axis=0)
        assert (answer.result(HANG_GUARD_S)[Output.CLASSES] == expected).mean() > 0.9995


def test_a_healthy_backend_is_left_alone(toy_bundle) -> None:
    shop = Workshop(toy_bundle)
    with shop.chain("openvino", "onnxruntime") as backend:
        assert_every_tile_is_answered(backend)
        assert backend.events == ()
    assert [(each.info.name, each.closed) for each in shop.opened] == [("openvino", True)]


def test_after_an_error_the_same_backend_is_created_again_and_no_tile_is_lost(toy_bundle, caplog) -> None:
    shop = Workshop(toy_bundle, openvino=[{"fails": {5}}])
    with shop.chain("openvino", "onnxruntime") as backend, caplog.at_level(logging.WARNING):
        assert_every_tile_is_answered(backend)
        assert [(event.backend, event.what) for event in backend.events] == [
            ("openvino", What.ERROR),
            ("openvino", What.OPENED),
        ]
    assert [(each.info.name, each.closed) for each in shop.opened] == [("openvino", True)] * 2
    assert "illegal memory access" in caplog.messages[0]


def test_after_a_second_error_the_next_backend_takes_over(toy_bundle) -> None:
    shop = Workshop(toy_bundle, openvino=[{"fails": {5}}, {"fails": {3}}])
    with shop.chain("openvino", "onnxruntime") as backend:
        assert_every_tile_is_answered(backend)
        assert backend.info.name == "onnxruntime"
        assert [(event.backend, event.what) for event in backend.events] == [
            ("openvino", What.ERROR),
            ("openvino", What.OPENED),
            ("openvino", What.ERROR),
            ("onnxruntime", What.OPENED),
        ]
        assert all(event.tiles_in_flight > 0 for event in backend.events)
    assert [each.closed for each in shop.opened] == [True] * 3


@pytest.mark.parametrize("blocks", [False, True], ids=["no answer", "blocked in submit"])
def test_a_backend_that_hangs_is_replaced_without_waiting_for_it(blocks, toy_bundle) -> None:
    shop = Workshop(toy_bundle, openvino=[{"silent_from": 7, "blocks": blocks}])
    with shop.chain("openvino", "onnxruntime", watchdog_s=0.5) as backend:
        assert_every_tile_is_answered(backend)
        assert [(event.backend, event.what) for event in backend.events] == [
            ("openvino", What.HUNG),
            ("onnxruntime", What.OPENED),
        ]
    hung, replacement = shop.opened
    assert not hung.closed, "closing it could hang as well"
    assert replacement.closed
    hung.freed.set()
    hung.close()


def test_a_slow_backend_is_not_taken_for_a_hung_one(toy_bundle) -> None:
    class Slow(Faulty):
        def submit(self, scenario, inputs):
            time.sleep(0.15)
            return super().submit(scenario, inputs)

    opened = Slow(
        BackendOptions(name="openvino", precision="fp32").open(toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES])
    )
    with ResilientBackend(lambda: opened, {}, watchdog_s=1.0) as backend:
        assert_every_tile_is_answered(backend, tiles=9)  # the last one is answered 1.35 s after it was submitted
        time.sleep(1.2)  # and owing nothing for longer than the watchdog's time is no silence
        assert_every_tile_is_answered(backend, tiles=3)
        assert backend.events == ()


def test_a_process_that_was_paused_does_not_take_its_backend_for_hung(toy_bundle, monkeypatch) -> None:
    class Late(Faulty):
        def submit(self, scenario, inputs):
            time.sleep(2.6)
            return super().submit(scenario, inputs)

    pause_s = [0.0]
    monkeypatch.setattr(resilient, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + pause_s[0]))
    opened = Late(
        BackendOptions(name="openvino", precision="fp32").open(toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES])
    )
    with ResilientBackend(lambda: opened, {}, watchdog_s=2.0) as backend:
        answer = backend.submit(Scenario.FULL, tile(1))
        pause_s[0] = 3600.0
        assert answer.result(HANG_GUARD_S)[Output.CLASSES].shape == (64, 64)
        assert backend.events == ()


def test_a_fallback_that_is_not_there_is_passed_over(toy_bundle) -> None:
    shop = Workshop(
        toy_bundle,
        openvino=[{"fails": {2}}, {"refuses": BackendUnavailableError("the driver is gone")}],
    )
    with shop.chain("openvino", "tensorrt", "onnxruntime") as backend:
        shop.faults["tensorrt"] = [{"refuses": BackendUnavailableError("pip install tensorrt")}]
        assert_every_tile_is_answered(backend)
        assert [(event.backend, event.what) for event in backend.events] == [
            ("openvino", What.ERROR),
            ("openvino", What.REFUSED),
            ("tensorrt", What.REFUSED),
            ("onnxruntime", What.OPENED),
        ]


def test_with_no_backend_left_every_tile_fails_with_the_whole_story(toy_bundle) -> None:
    shop = Workshop(toy_bundle, onnxruntime=[{"fails": {2}, "silent_from": 3}, {"silent_from": 1}])
    with shop.chain("onnxruntime", watchdog_s=0.5) as backend:
        full = Scenario.FULL
        answers = [backend.submit(full, tile(i)) for i in range(6)]
        for answer in answers[3:]:
            with pytest.raises(BackendError, match=r"illegal memory access.*no answer for 0\.5 s.*engine\.doctor"):
                answer.result(HANG_GUARD_S)
        with pytest.raises(BackendError, match="no backend is left"):
            backend.infer(full, tile(9))
    shop.opened[-1].close()


def test_a_mistake_of_ours_is_no_reason_to_change_the_backend(toy_bundle) -> None:
    shop = Workshop(toy_bundle)
    with shop.chain("openvino", "onnxruntime") as backend:
        with pytest.raises(TypeError):
            backend.infer(Scenario.FULL, {Sensor.RGIR: object()})  # type: ignore[dict-item]
        assert backend.events == ()


def test_a_hung_thread_does_not_keep_the_process_from_ending(toy_bundle) -> None:
    script = f"""
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from engine.backends.base import Backend, Output
from engine.deadline import left_behind
from engine.backends.options import BackendOptions
from engine.backends.resilient import ResilientBackend, leave
from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.sensors import Scenario
from tests.engine.test_resilient import tile

class Hung(Backend):
    def __init__(self, info):
        self.info, self.pool = info, ThreadPoolExecutor(1)
    def submit(self, scenario, inputs):
        return self.pool.submit(threading.Event().wait)
    def close(self):
        self.pool.shutdown()

bundle = Bundle.load(Path({str(toy_bundle.root)!r}))
def open_real():
    return BackendOptions(name="onnxruntime").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES])
with open_real() as real:
    hung = Hung(type(real.info)(name="openvino", library="x", device="x", precision="f32", threads=1, slots=1))
with ResilientBackend(lambda: hung, {{"openvino": lambda: hung, "onnxruntime": open_real}}, watchdog_s=0.2) as backend:
    print(backend.infer(Scenario.FULL, tile(1))[Output.CLASSES].shape, end="")
leave(8)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG_GUARD_S, check=False
    )
    assert (done.returncode, done.stdout) == (8, "(64, 64)"), done.stderr


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """The mark of a library that was left to itself is the process's own: it must not outlive a test."""
    yield
    left_behind.clear()


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_library_that_hangs_while_it_is_opened_first_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resilient, "OPEN_LIMIT_S", 0.2)
    never = threading.Event()
    with pytest.raises(BackendError, match=r"no backend was open after 0\.2 s"):
        ResilientBackend(lambda: never.wait(HANG_GUARD_S) and None, {})
    assert left_behind.is_set()
    never.set()


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_graph_that_never_answers_its_golden_tile_is_refused(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.backends.onnxruntime import OnnxRuntimeBackend

    monkeypatch.setattr(OnnxRuntimeBackend, "submit", lambda *_: Future())
    options = BackendOptions(name="onnxruntime", watchdog_s=0.2)
    with pytest.raises(BackendError, match=r"no answer to the golden tile for 0\.2 s"):
        resilient.open_chain(options, toy_bundle, scenarios=[Scenario.FULL], wanted=[Output.CLASSES])
    assert left_behind.is_set()


def test_an_endless_loop_in_a_graph_ends_the_run_with_its_code(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "endless"
    shutil.copytree(toy_bundle.root, root)
    model = onnx.load(root / "missing_ndsm.onnx")
    step = helper.make_node("Add", ["sum_in", "one"], ["sum_out"])
    again = helper.make_node("Identity", ["go_in"], ["go_out"])
    scalar = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go_in", 9), ("sum_in", 1))]
    results = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("go_out", 9), ("sum_out", 1))]
    body = helper.make_graph([again, step], "body", scalar, results)
    loop = helper.make_node("Loop", ["", "go", "start"], ["endless"], body=body)
    values = (("go", np.array(True)), ("start", np.float32(0)), ("one", np.float32(1)))
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    place = list(model.graph.node).index(softmax)
    model.graph.node.insert(place, helper.make_node("Mul", ["logits", "endless"], ["late_logits"]))
    model.graph.node.insert(place, loop)
    softmax.input[0] = "late_logits"
    (root / "missing_ndsm.onnx").write_bytes(model.SerializeToString())
    graphs = {scenario: dict(by_precision) for scenario, by_precision in toy_bundle.manifest.graphs.items()}
    graphs[Scenario.MISSING_NDSM] = {"fp32": FileRef.of(root / "missing_ndsm.onnx", root)}
    save_manifest(replace(toy_bundle.manifest, graphs=graphs), root)
    command = [sys.executable, "-m", "engine.run", "--bundle", str(root), "--sensors", "rgir", "--watchdog", "1"]
    done = subprocess.run(
        [*command, "--backend", "onnxruntime", "--output", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_GUARD_S, check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert "golden tile" in done.stderr
