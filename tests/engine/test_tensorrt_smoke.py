"""The smoke test of ``tests/gpu`` on the emulated device: it passes where all is right and fails where it is not."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from engine.contract.bundle import Bundle
from tests.engine.emulated_gpu import Gpu, installed
from tests.gpu import smoke

Run = Callable[..., int]


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    emulated = Gpu()
    with installed(emulated, {}):
        yield emulated


@pytest.fixture
def run(toy_bundle: Bundle, gpu: Gpu) -> Run:
    """The command on small tiles, each through a little memory."""
    small = ["--bundle", str(toy_bundle.root), "--scratch", "1", "--rounds", "1"]
    return lambda *options: smoke.main([*small, *options])


def driver() -> ModuleType:
    return sys.modules["pycuda.driver"]


def test_every_tile_comes_back_with_and_without_cuda_graphs(run: Run, gpu: Gpu, tmp_path: Path) -> None:
    assert run("--tiles", "30", "--out", str(tmp_path / "smoke.csv")) == 0
    assert gpu.complaints() == []
    rows = list(csv.DictReader((tmp_path / "smoke.csv").open()))
    assert [row["run"] for row in rows] == ["CUDA graphs", "kernel by kernel", "CUDA graphs"]
    assert all((row["tiles"], row["wrong"]) == ("30", "0") for row in rows)


def test_a_forgotten_wait_is_found(run: Run, gpu: Gpu, monkeypatch, capsys) -> None:
    monkeypatch.setattr(driver().Stream, "wait_for_event", lambda _stream, _event: None)
    assert run("--tiles", "30") == 1
    assert "tiles are wrong (CUDA graphs)" in capsys.readouterr().out


def test_memory_that_does_not_come_back_is_found(run: Run, gpu: Gpu, monkeypatch, capsys) -> None:
    kept = []
    allocate = driver().mem_alloc

    def leaky(nbytes: int) -> object:
        kept.append(allocate(nbytes))
        kept[-1].free = lambda: None
        return kept[-1]

    monkeypatch.setattr(driver(), "mem_alloc", leaky)
    assert run("--tiles", "6", "--scratch", "16") == 1
    assert "MiB did not come back" in capsys.readouterr().out


def test_a_provoked_error_700_is_survived_by_openvino(run: Run, gpu: Gpu, capsys) -> None:
    assert run("--provoke") == 0
    told = capsys.readouterr().out
    assert "tensorrt lost: " in told
    assert "CUDA error 700" in told
    assert "openvino opened: " in told
    assert gpu.sticky == 700
    assert gpu.complaints() == []


def test_a_runtime_that_opens_the_lost_device_again_is_found(run: Run, gpu: Gpu, monkeypatch, capsys) -> None:
    monkeypatch.setattr(import_module("engine.backends.device"), "STICKY", frozenset())
    assert run("--provoke") == 1
    assert "must give the device up at once" in capsys.readouterr().out


def test_a_raster_runs_through_engines_that_take_no_time(run: Run, gpu: Gpu, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("engine.backends.options.check_golden_tile", None)  # put back afterwards
    assert run("--raster", "--mpx", "0.25", "--out", str(tmp_path / "raster.csv")) == 0
    assert "tiles/s" in capsys.readouterr().out
    assert gpu.complaints() == []


def test_the_device_says_who_it_is(run: Run, gpu: Gpu, capsys) -> None:
    assert run("--device") == 0
    assert "Emulated GPU (sm_87, 16 multiprocessors), power mode None, CUDA driver" in capsys.readouterr().out


def test_without_a_device_the_exit_code_is_the_backends(run: Run, gpu: Gpu, capsys) -> None:
    gpu.devices = 0
    assert run() == 6
    assert "the driver lists none" in capsys.readouterr().err
