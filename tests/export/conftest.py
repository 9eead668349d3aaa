"""One real bundle for all tests of export: a small random GEMMNet, exported once by the command line itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx
import pytest
import torch
from torch import nn

from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario
from export.onnx_graphs import export_graph
from export.run import main
from tests.conftest import prove_with_the_least
from train import checkpoint
from train.checkpoint import BandStatistics, CheckpointInfo
from train.config import PRESETS
from train.metrics import Scores
from train.model import GEMMNet

TILE_PX = 128
STEP = 7
HELD_OUT = "two made-up scenes"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What the command line was given, and the bundle that came out."""

    checkpoint: Path
    model: GEMMNet
    bundle: Bundle
    output: str
    raw: Mapping[Scenario, onnx.ModelProto]
    """The graphs as torch.onnx gave them, before surgery."""


def scores(mean_f1: float) -> Scores:
    return Scores(mean_f1=mean_f1, mean_iou=mean_f1 / 2, overall_accuracy=0.5, class_f1={})


def random_model(seed: int, **changes: object) -> GEMMNet:
    """The nano preset, thinner and shallower, with normalisation that is not that of an untrained layer."""
    torch.manual_seed(seed)
    small = replace(
        PRESETS["nano"].model,
        encoder_widths=(8, 8, 16, 24, 32),
        encoder_refinements=(0, 1, 0, 0, 0),
        generator_widths=(8, 16, 32),
        generator_refinements=(0, 0, 0),
        token_width=32,
        token_heads=2,
        token_mlp=64,
    )
    model = GEMMNet(replace(small, **changes))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # untrained ones are alike, and the exporter would merge them
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def save_checkpoint(path: Path, model: GEMMNet, *, step: int = STEP) -> None:
    info = CheckpointInfo(
        model=model.config,
        train=PRESETS["nano"].train,
        sensors=model.config.sensor_specs,
        statistics={
            "rgir": (BandStatistics(mean=100.0, std=50.0),) * 3,
            "ndsm": (BandStatistics(mean=2.0, std=4.0),),
        },
        dataset="one made-up scene",
        step=step,
        metrics={scenario: scores(0.25) for scenario in Scenario},
        command="python -m train.run --preset nano",
        tools={"torch": "0.0"},
    )
    checkpoint.save(path, model.state_dict(), info)


def save_metrics(path: Path, *, step: int = STEP) -> None:
    """What ``python -m train.evaluate`` writes."""
    results = [
        {"scenario": scenario, "input": fed, "scores": scores(0.75 if fed == "generator" else 0.5)}
        for scenario in Scenario
        for fed in ("generator", *(() if scenario is Scenario.FULL else ("zeros", "mean")))
    ]
    report = {"checkpoint": "best.safetensors", "step": step, "held_out": HELD_OUT, "results": results}
    path.write_bytes(msgspec.json.encode(report))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever needs the exported bundle waits for its export."""
    for item in items:
        if "exported" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@contextmanager
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Tensors here are so small that a second thread mostly waits, and a proof in brief is proof enough."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.run.prove", prove_with_the_least)
        yield patch
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def all_quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="session")  # a worker that leaves this package comes back to it
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("export")
    path = root / "tiny" / "best.safetensors"
    save_checkpoint(path, random_model(seed=0))
    save_metrics(path.with_name("metrics.json"))
    with quick() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "86400")
        lines: list[str] = []
        raw: dict[Scenario, onnx.ModelProto] = {}

        def recorded(model: GEMMNet, scenario: Scenario, tile_px: int) -> onnx.ModelProto:
            raw[scenario] = export_graph(model, scenario, tile_px)
            return raw[scenario]

        patch.setattr("export.run._say", lines.append)
        patch.setattr("export.onnx_graphs.export_graph", recorded)
        options = ["--tile", str(TILE_PX), "--gsd-range", "0.1", "0.4", "--explain"]
        assert main([str(path), "--bundle", str(root / "bundle"), *options]) == 0
    # The model is read again: what export leaves in memory must not be what the graphs are compared with.
    model, _ = checkpoint.load(path)
    return Exported(checkpoint=path, model=model, bundle=Bundle.load(root / "bundle"), output="\n".join(lines), raw=raw)
