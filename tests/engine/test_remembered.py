"""What a start found out serves the next one, and nothing else: damage, strangers and failures make it begin anew."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import engine.backends
from engine.backends.base import Output
from engine.backends.fastest import chosen_of, conditions, fastest, learn
from engine.backends.openvino import shared_core
from engine.backends.options import BackendOptions
from engine.backends.remembered import MOST_FILES, Remembered
from engine.contract.sensors import Scenario

WANTED = (Output.CLASSES, Output.CONFIDENCE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMMNET_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def answers(bundle, remembered: Remembered | None) -> dict[Output, np.ndarray]:
    golden = bundle.golden()
    with BackendOptions(name="openvino").open(
        bundle, scenarios=Scenario, wanted=WANTED, remembered=remembered
    ) as backend:
        return dict(backend.infer(Scenario.FULL, {s: golden[s.value] for s in Scenario.FULL.sensors}))


def test_a_second_start_compiles_nothing_checks_nothing_and_answers_the_same(folder, toy_bundle, monkeypatch) -> None:
    first = answers(toy_bundle, Remembered.here())
    kinds = sorted(path.name.partition("-")[0] for path in folder.iterdir())
    assert kinds == ["compiled"] * len(Scenario) + ["golden"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done once before")

    monkeypatch.setattr(type(shared_core()), "compile_model", refuse)
    monkeypatch.setattr(engine.backends.options, "check_golden_tile", refuse)
    second = answers(toy_bundle, Remembered.here())
    for output in WANTED:
        np.testing.assert_array_equal(first[output], second[output])
    with pytest.raises(AssertionError, match="done once before"):
        answers(toy_bundle, None)


def test_what_is_damaged_is_made_anew(folder, toy_bundle, caplog) -> None:
    first = answers(toy_bundle, Remembered.here())
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    damaged = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = answers(toy_bundle, Remembered.here())
    np.testing.assert_array_equal(first[Output.CLASSES], again[Output.CLASSES])
    assert "is damaged, and is written anew" in caplog.text
    assert all(path.read_bytes() != damaged[path.name] for path in folder.iterdir())


def test_another_bundle_or_another_setting_finds_nothing(folder, toy_bundle) -> None:
    remembered = Remembered.here()
    assert remembered is not None
    key = conditions(toy_bundle, None, "throughput")
    remembered.write("fastest", key, {"fp32": 10.0, "int8": 20.0})
    assert fastest(remembered, toy_bundle, None, "throughput") == "int8"
    assert fastest(remembered, toy_bundle, 1, "throughput") is None
    assert fastest(remembered, toy_bundle, None, "latency") is None
    assert fastest(None, toy_bundle, None, "throughput") is None
    remembered.write("fastest", key, {"fp32": "quick", "int8": None})
    assert fastest(remembered, toy_bundle, None, "throughput") is None


def test_a_folder_that_others_could_write_to_is_not_used(folder, caplog, monkeypatch) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert Remembered.here() is None
    assert "`chmod 700` it, or set GEMMNET_CACHE to another" in caplog.text
    folder.chmod(0o700)
    assert Remembered.here() is not None
    link = folder.with_name("link")
    link.symlink_to(folder)
    monkeypatch.setenv("GEMMNET_CACHE", str(link))
    assert Remembered.here() is None


def test_an_empty_variable_keeps_nothing(monkeypatch) -> None:
    monkeypatch.setenv("GEMMNET_CACHE", "")
    assert Remembered.here() is None


def test_the_folder_does_not_grow_without_end(folder) -> None:
    remembered = Remembered.here()
    assert remembered is not None
    for number in range(MOST_FILES + 5):
        remembered.keep("thing", {"number": number}, b"content")
    assert len(list(folder.iterdir())) == MOST_FILES
    assert remembered.content("thing", {"number": MOST_FILES + 4}) == b"content"
    assert remembered.content("thing", {"number": -1}) == b""


def test_int8_has_to_earn_its_place() -> None:
    assert chosen_of({"fp32": 40.0, "int8": 60.0}) == "int8"
    assert chosen_of({"fp32": 40.0, "int8": 42.0}) == "fp32"
    assert chosen_of({"fp32": 40.0}) == "fp32"


def test_what_is_fastest_is_measured_once_and_then_run(folder, toy_bundle, monkeypatch) -> None:
    options = BackendOptions(name="openvino")
    first = learn(options, toy_bundle, scenarios=Scenario, wanted=WANTED)
    assert first.startswith("--precision auto is the fp32 graph here"), "the toy has no other"
    monkeypatch.setattr(BackendOptions, "open", None)  # to be called it would have to be a function
    assert learn(options, toy_bundle, scenarios=Scenario, wanted=WANTED) == first
    assert learn(BackendOptions(precision="fp32"), toy_bundle, scenarios=Scenario, wanted=WANTED) == ""
