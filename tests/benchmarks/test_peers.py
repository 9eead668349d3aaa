"""Peers compute the same network on the same pixels, and their times are compared round by round."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers import __main__ as command
from benchmarks.peers import libraries, subject
from benchmarks.peers.libraries import CPU_PEERS, EAGER, EAGER_KEEPING, ENGINE, open_peer
from benchmarks.peers.loader import LoaderTiles
from benchmarks.peers.others import GeoaiTiles, GeoInferenceTiles, MonaiWindows, tilers_of
from benchmarks.peers.pytorch import KEEP_MEMORY, CompiledTorchPeer, OwnProcess, TorchPeer
from benchmarks.peers.rounds import ContestRow, ratio
from benchmarks.peers.subject import Subject
from benchmarks.peers.tilers import RUN, CroppedTiles, EngineRun, RasterPair, cropped
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, BackendUnavailableError
from engine.contract.sensors import Scenario, Sensor
from export.scenarios import answer, inputs_of
from tests.conftest import UNIT, kernels, make_scene, toy_map, toy_probabilities

FP32 = {
    key: opener
    for key, opener in CPU_PEERS.items()
    if key[1] == "fp32" and key[0] not in ("torch.compile", EAGER_KEEPING)
}


class ToyModule(nn.Module):
    """The toy graph of tests/conftest.py in PyTorch."""

    def __init__(self, scenario: Scenario, radius: int) -> None:
        super().__init__()
        weights = kernels(scenario, radius)
        self.radius, self.sensors = radius, inputs_of(scenario)
        self.kernels = nn.ParameterList(nn.Parameter(torch.from_numpy(weights[sensor])) for sensor in self.sensors)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return answer(
            sum(
                nn.functional.conv2d(values.float() * UNIT[sensor], kernel, padding=self.radius)
                for sensor, values, kernel in zip(self.sensors, inputs, self.kernels, strict=True)
            )
        )


def toy_subject(bundle: Bundle, radius: int, name: str = "toy") -> Subject:
    modules = {scenario: ToyModule(scenario, radius).eval() for scenario in Scenario}
    return Subject(name=name, weights="toy", modules=modules, bundle=bundle)


@pytest.fixture(autouse=True)
def one_torch_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def raster(write_scene) -> RasterPair:
    pixels, valid = make_scene(150, 210, holes=False)
    return RasterPair(mpx=0.0315, paths=write_scene((pixels, valid)), pixels=pixels)


def whole_map(raster: RasterPair, scenario: Scenario, radius: int) -> NDArray[np.uint8]:
    """The oracle, by numpy on the whole raster at once."""
    pixels = {sensor: raster.pixels[sensor] for sensor in scenario.sensors}
    return toy_map(pixels, {sensor: np.ones(raster.shape, bool) for sensor in pixels}, radius)[0]


@pytest.mark.parametrize(
    ("key", "scenario"),
    # One scenario of PyTorch is enough: it has seconds of imports in a process of its own.
    [(key, scenario) for key in FP32 for scenario in (Scenario if key[0] != EAGER else [Scenario.MISSING_NDSM])],
    ids=str,
)
def test_every_library_gives_each_tile_the_classes_of_numpy(toy_bundle, key, scenario) -> None:
    tiles = []
    for seed in range(5):
        pixels, _ = make_scene(64, 64, holes=False, seed=seed)
        tiles.append({sensor: pixels[sensor] for sensor in scenario.sensors})
    expected = [toy_probabilities(scenario, tile, 0).argmax(axis=0) for tile in tiles]
    peer = open_peer(FP32[key], toy_subject(toy_bundle, 0), scenario)
    found: dict[int, NDArray[np.uint8]] = {}
    try:
        assert (peer.infer(tiles[0]) == expected[0]).mean() > 0.999
        peer.infer_each(tiles, lambda number, classes: found.__setitem__(number, classes.copy()))
    finally:
        peer.close()
    assert sorted(found) == list(range(5))
    for number, classes in found.items():
        assert classes.dtype == np.uint8
        assert (classes == expected[number]).mean() > 0.999


@pytest.mark.parametrize("name", ["OpenVINO AsyncInferQueue", ENGINE])
def test_cropped_tiles_make_the_map_of_the_whole_raster(wide_bundle, raster, name) -> None:
    scenario, toy = Scenario.FULL, toy_subject(wide_bundle, 6)
    tiler = CroppedTiles(open_peer(CPU_PEERS[name, "fp32"], toy, scenario), toy, scenario, raster)
    classes, seconds = tiler.timed()
    tiler.close()
    assert seconds > 0
    # beyond the raster the network sees zeros, as numpy does: the halo of 8 px covers its reach of 6
    assert (classes == whole_map(raster, scenario, 6)).mean() > 0.999


def test_the_run_from_disk_to_disk_makes_the_same_map(toy_bundle, raster, tmp_path) -> None:
    scenario = Scenario.FULL
    tiler = EngineRun(toy_subject(toy_bundle, 0), scenario, raster, tmp_path)
    for _ in range(2):  # again over its own output
        classes, seconds = tiler.timed()
    assert seconds > 0
    assert tiler.library.startswith("openvino")
    assert (classes == whole_map(raster, scenario, 0)).mean() > 0.999


@pytest.mark.parametrize("scenario", Scenario)
def test_monai_blends_windows_to_the_same_map(toy_bundle, raster, scenario) -> None:
    pytest.importorskip("monai")
    classes = MonaiWindows(toy_subject(toy_bundle, 0), scenario, raster).map()
    assert (classes == whole_map(raster, scenario, 0)).mean() > 0.999


@pytest.mark.parametrize("scenario", Scenario)
def test_geoai_blends_tiles_to_the_same_map(toy_bundle, raster, tmp_path, scenario) -> None:
    pytest.importorskip("geoai")
    classes = GeoaiTiles(toy_subject(toy_bundle, 0), scenario, raster, tmp_path).map()
    assert (classes == whole_map(raster, scenario, 0)).mean() > 0.999


@pytest.mark.parametrize("scenario", Scenario)
def test_geo_inference_blends_windows_to_the_same_map(toy_bundle, raster, tmp_path, scenario) -> None:
    pytest.importorskip("geo_inference")
    tiler = GeoInferenceTiles(toy_subject(toy_bundle, 0), scenario, raster, tmp_path)
    for _ in range(2):
        assert (tiler.map() == whole_map(raster, scenario, 0)).mean() > 0.999


@pytest.mark.slow
def test_a_loop_over_a_loader_writes_the_same_map(toy_bundle, raster, tmp_path) -> None:
    tiler = LoaderTiles(toy_subject(toy_bundle, 0), Scenario.FULL, raster, tmp_path)
    try:
        assert (tiler.map() == whole_map(raster, Scenario.FULL, 0)).mean() > 0.999
    finally:
        tiler.close()


@pytest.mark.parametrize(
    ("module", "opens", "says"),
    [
        ("monai", lambda *all_of_it: MonaiWindows(*all_of_it[:3]), "pip install monai"),
        ("geoai", GeoaiTiles, "pip install --no-deps geoai-py"),
        ("geo_inference.geo_inference", GeoInferenceTiles, "pip install --no-deps geo-inference"),
    ],
)
def test_a_tiler_that_is_not_installed_names_its_command(
    toy_bundle, raster, tmp_path, monkeypatch, module, opens, says
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match=says):
        opens(toy_subject(toy_bundle, 0), Scenario.FULL, raster, tmp_path)


class Environment(TorchPeer):
    """Every class is 1 where the C library was told to keep memory."""

    def infer(self, inputs):
        told = all(os.environ.get(name) == value for name, value in KEEP_MEMORY.items())
        return np.full(next(iter(inputs.values())).shape[1:], told, np.uint8)


class Dying(TorchPeer):
    """PyTorch that is killed on its first tile."""

    def infer(self, inputs):
        os.kill(os.getpid(), signal.SIGKILL)


def own_process(kind: type[TorchPeer], bundle: Bundle, environment: dict[str, str] | None = None) -> OwnProcess:
    module = toy_subject(bundle, 0).modules[Scenario.FULL]
    return OwnProcess(kind, module, Scenario.FULL, bundle.manifest.tile_px, environment)


@pytest.mark.slow
def test_memory_is_kept_in_the_process_that_was_told_so_and_here_nothing_changes(toy_bundle) -> None:
    before = dict(os.environ)
    peer = own_process(Environment, toy_bundle, KEEP_MEMORY)
    pixels, _ = make_scene(64, 64, holes=False)
    found = peer.infer(pixels)
    peer.close()
    assert found.all()
    assert dict(os.environ) == before
    assert not set(KEEP_MEMORY) & set(before)


@pytest.mark.slow
def test_a_process_that_dies_or_cannot_begin_is_an_error_of_its_library(toy_bundle, monkeypatch) -> None:
    peer = own_process(Dying, toy_bundle)
    with pytest.raises(BackendError, match="exit code -9"):
        peer.infer(make_scene(64, 64, holes=False)[0])
    peer.close()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendUnavailableError, match="no-such-compiler, which is not there"):
        own_process(CompiledTorchPeer, toy_bundle)


def test_a_ratio_is_the_median_of_those_of_each_round(toy_bundle) -> None:
    toy = toy_subject(toy_bundle, 0)

    def row(*offline_ms: float) -> ContestRow:
        return ContestRow(
            group="tile",
            subject=toy,
            scenario=Scenario.FULL,
            peer="",
            precision="fp32",
            library="",
            agreement=1.0,
            offline_ms=list(offline_ms),
        )

    # a slow spell in the second round touches both; the ratio of the medians would be 4 / 3
    assert ratio(row(4.0, 40.0, 2.0), row(2.0, 20.0, 3.0), "offline_ms") == pytest.approx(2.0)


def run(monkeypatch, out: Path, contest: dict[str, Subject], *options: str) -> list[dict[str, str]]:
    monkeypatch.setattr(subject, "of_checkpoint", lambda name, *_: contest[name])
    # A process for each network, scenario and group would take minutes to import PyTorch.
    here = {(EAGER, "fp32"): lambda toy, scenario: TorchPeer(toy.modules[scenario], scenario)}
    others = {key: v for key, v in CPU_PEERS.items() if "torch" not in key[0].lower()}
    monkeypatch.setattr(libraries, "CPU_PEERS", here | others)
    monkeypatch.setattr(libraries, "MODEL_PEERS", [key for key in libraries.MODEL_PEERS if key[0] != EAGER_KEEPING])
    named = [f"{name}={name}.safetensors" for name in contest]
    bundles = [f"{name}={toy.bundle.root}" for name, toy in contest.items()]
    words = ["--checkpoints", *named, "--bundles", *bundles, "--tiles", "2", "--rounds", "1", "--mpx", "0.03"]
    assert command.main([*words, "--out", str(out), *options]) == 0
    return list(csv.DictReader(out.open()))


@pytest.mark.slow
def test_one_network_is_compared_with_the_engine_in_both_groups(toy_bundle, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "geoai", None)
    monkeypatch.setitem(sys.modules, "geo_inference.geo_inference", None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    rows = run(monkeypatch, tmp_path / "peers.csv", {"toy": toy_subject(toy_bundle, 0)})
    names = [name for name, _ in FP32]
    assert {(row["group"], row["scenario"], row["peer"]) for row in rows} == {
        (group, scenario.value, peer)
        for scenario in Scenario
        for group, peers in (("tile", names), ("raster", [*map(cropped, names), RUN[0]]))
        for peer in peers
    }
    for row in rows:
        # the toy networks have no bias: where the height is 0, four classes tie and each library takes another one
        assert float(row["agreement"]) > (0.97 if row["scenario"] == Scenario.MISSING_RGIR else 0.999)
        measured = ("single_stream", "offline") if row["group"] == "tile" else ("raster",)
        assert all(float(row[f"{mode}_over_engine"]) > 0 for mode in measured)
        if row["peer"] in (ENGINE, cropped(ENGINE)):
            assert {row[f"{mode}_over_engine"] for mode in measured} == {"1.0"}
    assert {row["raster_over_run"] for row in rows if row["peer"] == RUN[0]} == {"1.0"}
    told = capsys.readouterr().out
    assert "left out: toy: MONAI sliding window, fp32: MONAI is not installed" in told
    assert "left out: toy: geoai, disk to disk, fp32" in told
    assert "left out: toy: torch.compile, DataLoader workers, disk to disk, fp32: torch.compile compiles C++" in told
    assert "left out: toy: engine, int8: the bundle" in told


def test_networks_are_compared_with_the_first_one(toy_bundle, wide_bundle, tmp_path, monkeypatch) -> None:
    contest = {"slow": toy_subject(wide_bundle, 6, "slow"), "fast": toy_subject(toy_bundle, 0, "fast")}
    rows = run(monkeypatch, tmp_path / "models.csv", contest)
    assert {(row["network"], row["peer"]) for row in rows} == {
        (network, peer) for network in contest for peer in (EAGER, "OpenVINO infer", ENGINE)
    }
    for row in rows:
        if row["network"] == "slow":
            assert row["single_stream_over_first"] == row["offline_over_first"] == "1.0"
        if row["network"] == "slow" and row["peer"] == EAGER:
            assert row["offline_speedup_over_first_eager"] == "1.0"
        assert float(row["single_stream_speedup_over_first_eager"]) > 0


def test_another_network_under_the_same_name_shows_as_disagreement(
    toy_bundle, wide_bundle, tmp_path, monkeypatch
) -> None:
    wrong = Subject(name="toy", weights="", modules=toy_subject(wide_bundle, 6).modules, bundle=toy_bundle)
    rows = run(monkeypatch, tmp_path / "peers.csv", {"toy": wrong}, "--groups", "tile")
    assert {row["group"] for row in rows} == {"tile"}
    for row in rows:
        same = float(row["agreement"])
        assert same == 1.0 if row["peer"] == EAGER else same < 0.9


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--presets", "nano", "--tile", "100"), "--tile must be a multiple of 32 px for nano"),
        (("--tiles", "0"), "must be at least 1"),
        (("--groups", "row"), "--groups takes a list of tile, raster"),
        (("--checkpoints", "best.safetensors"), "--checkpoints takes NAME=PATH"),
        (("--checkpoints", "a=b", "a=c"), "names a network twice"),
        (("--presets", "nano", "--bundles", "nano=engine/demo/bundle"), "each bundle that of its checkpoint"),
        (("--presets", "nano", "--checkpoints", "nano=x"), "a name of its own"),
        (("--presets", "mega"), "--presets takes a list of"),
        (("--checkpoints", "a=nowhere.safetensors"), "--checkpoints takes files of `python -m train.run`"),
    ],
)
def test_wrong_options_are_explained(tmp_path, capsys, options, says) -> None:
    assert command.main([*options, "--out", str(tmp_path / "peers.csv")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "peers.csv").exists()


def test_the_raster_in_memory_is_the_one_on_the_disk(tmp_path) -> None:
    made = RasterPair.write(tmp_path, 0.03)
    assert made.shape == (173, 173)
    assert made.stacked(Scenario.FULL).shape == (4, 173, 173)
    assert (made.stacked(Scenario.MISSING_RGIR)[0] == made.pixels[Sensor.NDSM][0]).all()
    assert list(tilers_of(FP32))[-1] == RUN
