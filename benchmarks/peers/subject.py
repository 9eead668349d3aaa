"""The network that every library computes: a PyTorch module per scenario, and the bundle exported from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from engine.contract.bundle import Bundle, Training, save_manifest
from engine.contract.errors import BackendUnavailableError, UsageError
from engine.contract.sensors import Scenario
from export import golden, pack, surgery, verify
from export.onnx_graphs import export_graph, write_graphs
from export.run import DEFAULT_SEED
from export.scenarios import scenario_module
from train import checkpoint
from train.config import PRESETS
from train.system import System
from train.systems import build

SEED = 0
HALO_PX = 32
"""Of bundles that are exported here: that of the demo bundle, so that no time goes into measuring one."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One set of weights, as PyTorch and as ONNX graphs."""

    name: str
    weights: str
    """Where they come from, for the result."""
    modules: Mapping[Scenario, nn.Module]
    """In evaluation mode on the CPU: raw sensor units -> (classes, confidence, probabilities), as
    :mod:`export.scenarios` describes them."""
    bundle: Bundle


def of_checkpoint(name: str, path: Path, bundle: Path | None, folder: Path, tile_px: int) -> Subject:
    """A trained network.

    Args:
        name: in the table.
        path: of ``python -m train.run``.
        bundle: exported from it; None exports its fp32 graphs into ``folder``.
        folder: for what is made here.
        tile_px: side of the tile to export for.

    Raises:
        EngineError: the checkpoint or the bundle cannot be used.
    """
    try:
        model, info = checkpoint.load(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"--checkpoints takes files of `python -m train.run`: {error}") from error
    weights = f"{path.name}, step {info.step}"
    if bundle is None:
        return _exported(name, weights, model, info, folder / name, tile_px)
    return _subject(name, weights, model, Bundle.load(bundle))


def of_preset(name: str, folder: Path, tile_px: int) -> Subject:
    """A preset with the random weights that it starts training from: slow or fast like any others.

    Raises:
        UsageError: there is no such preset.
        EngineError: it cannot be exported.
    """
    if name not in PRESETS:
        raise UsageError(f"--presets takes a list of {', '.join(PRESETS)}; received {name!r}")
    preset = PRESETS[name]
    torch.manual_seed(SEED)
    info = checkpoint.CheckpointInfo(
        model=preset.model,
        train=preset.train,
        sensors=preset.model.sensor_specs,
        statistics={},
        dataset="none",
        step=0,
        metrics={},
        command="none",
        tools=checkpoint.tool_versions(),
    )
    return _exported(name, f"random, seed {SEED}", build(preset.model).eval(), info, folder / name, tile_px)


def with_int8(subject: Subject) -> Subject:
    """The subject with int8 graphs, every convolution quantised with ranges from the golden tile alone.

    That is as fast as int8 gets, and no more: `python -m calib.run` keeps layers floating until accuracy is within a
    budget. A bundle that has int8 graphs is left as it is. Only for bundles that were exported here: it adds files.

    Raises:
        BackendUnavailableError: Model Optimizer is not installed.
        EngineError: a graph cannot be quantised.
    """
    if all("int8" in by_precision for by_precision in subject.bundle.manifest.graphs.values()):
        return subject
    try:
        import onnx

        from calib import publish, qdq, quantize, ranges, rewrites
    except ImportError as error:
        raise BackendUnavailableError(
            f"int8 graphs need Model Optimizer ({error}): pip install 'gemmnet-edge[calib]', or pass --bundles "
            "NAME=DIR with int8 graphs"
        ) from error
    graphs = {}
    for scenario in Scenario:
        floating = rewrites.prepare(onnx.load(subject.bundle.graph(scenario, "fp32")))
        golden = subject.bundle.golden()
        tile = {sensor.value: golden[sensor.value][None] for sensor in scenario.sensors}
        placed = quantize.place(floating, tile)
        found = ranges.collect(floating, qdq.ranged_tensors(placed), [tile])
        thresholds = {tensor: ranges.threshold(magnitudes, "max") for tensor, magnitudes in found.items()}
        graphs[scenario] = qdq.finish(placed, thresholds)
    return replace(subject, bundle=publish.publish(subject.bundle, graphs, {}))


def _subject(name: str, weights: str, model: System, bundle: Bundle) -> Subject:
    modules = {scenario: scenario_module(model, scenario) for scenario in Scenario}
    return Subject(name=name, weights=weights, modules=modules, bundle=bundle)


def _exported(
    name: str, weights: str, model: System, info: checkpoint.CheckpointInfo, folder: Path, tile_px: int
) -> Subject:
    """The bundle that `python -m export.run` would write in fp32, without its gate.

    That gate holds noise to tolerances which random weights can miss; here the agreement of every row says how close
    the graphs are.
    """
    if tile_px < 1 or tile_px % max(32, model.config.stride_px):
        raise UsageError(
            f"--tile must be a multiple of {max(32, model.config.stride_px)} px for {name}, received {tile_px}"
        )
    graphs = {}
    for scenario in tqdm(Scenario, desc=f"export {name}", unit="graph"):
        graphs[scenario], _ = surgery.operate(export_graph(model, scenario, tile_px))
    folder.mkdir()
    tile = golden.synthetic_tile(seed=DEFAULT_SEED, size_px=tile_px)
    golden.write_golden(folder / golden.GOLDEN_NAME, [(tile, verify.answers(model, tile))])
    manifest = pack.manifest_of(
        folder,
        name=name,
        info=info,
        training=Training(
            command=info.command, dataset=info.dataset, steps=info.step, held_out="not measured", scores=()
        ),
        shared={"fp32": write_graphs(graphs, folder)},
        golden=folder / golden.GOLDEN_NAME,
        golden_tiles=1,
        tile_px=tile_px,
        halo_px=min(HALO_PX, tile_px // 8),
        number=0,
    )
    save_manifest(manifest, folder)
    return _subject(name, weights, model, Bundle.load(folder))
