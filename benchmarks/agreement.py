"""How far backends and precisions agree: every graph of a bundle in every backend, against one reference.

    python -m benchmarks.agreement                                                       the demo bundle
    python -m benchmarks.agreement --bundle B --checkpoint runs/demo/best.safetensors    against PyTorch
    python -m benchmarks.agreement --backends tensorrt,onnxruntime --csv out.csv         on a GPU

The reference is PyTorch in float32 when a checkpoint is given, else the fp32 graph in ONNX Runtime. Tiles: the bundle's
golden tile and windows of a scene. Per backend, precision and scenario: share of pixels with the reference's class,
largest and mean difference of a probability.

A backend that is not there is left out with its reason. One that fails, does not reproduce the golden tile, or goes
beyond the same tolerance (engine/backends/golden.py) on another tile, ends the command with exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import at_least_one, exit_code_of, listed, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.tables import TABLES
from benchmarks.tiles import Tile, tiles_of
from engine import demo
from engine.backends.base import BackendInfo, ExecutionPrecision, Output
from engine.backends.golden import tolerance_of
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError, BackendUnavailableError, BundleError, UsageError
from engine.contract.sensors import Scenario

BACKENDS: tuple[BackendName, ...] = ("tensorrt", "openvino", "onnxruntime")
WANTED = (Output.CLASSES, Output.PROBABILITIES)

Answer = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""Classes [T, T] and probabilities [C, T, T]."""
Reference = Callable[[Scenario, Tile], Answer]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One backend, graph and scenario against the reference, over all tiles."""

    backend: BackendInfo
    scenario: Scenario
    class_agreement: float
    """Share of pixels."""
    max_probability_difference: float
    mean_probability_difference: float

    @property
    def holds(self) -> bool:
        """Whether it lies within what the golden check allows this graph on this device."""
        limit = tolerance_of(self.backend.graph, self.backend.precision)
        return (
            self.class_agreement >= limit.class_agreement
            and self.max_probability_difference <= limit.max_probability
            and self.mean_probability_difference <= limit.mean_probability
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write the CSV and the table."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(lambda: compare(options))


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("agreement", __doc__, result="agreement.csv")
    parser.add_argument("--plans", type=Path, metavar="DIR", help="TensorRT plans (default: plans under the bundle)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the model the bundle was exported from")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="LIST", help="default: all three")
    parser.add_argument("--precisions", metavar="LIST", help="default: all that the bundle has")
    parser.add_argument("--scene", type=Path, metavar="DIR", help="rgir.tif and ndsm.tif (default: the demo scene)")
    parser.add_argument("--tiles", type=int, default=3, metavar="N", help="tiles, the golden one first (default: 3)")
    return parser


def compare(options: argparse.Namespace) -> int:
    """Do what the command line asks; 1 when a row is out of tolerance.

    Raises:
        EngineError: it cannot be done.
    """
    bundle = Bundle.load(options.bundle)
    at_least_one(options, "tiles")
    scene = demo.SCENE if options.scene is None else {sensor: options.scene / f"{sensor}.tif" for sensor in demo.SCENE}
    tiles = tiles_of(bundle, scene, options.tiles)
    name, reference = reference_of(bundle, options.checkpoint)
    expected = {scenario: [reference(scenario, tile) for tile in tiles] for scenario in Scenario}
    found: list[Agreement] = []
    failed = False
    for backend in listed(options.backends, BACKENDS, "--backends"):
        for precision in precisions_of(bundle, options.precisions):
            try:
                found += agreements(bundle, backend, precision, options.plans, tiles, expected)
            except BackendUnavailableError as error:
                print(f"{backend} {precision} is left out: {error}", file=sys.stderr)
            except (BackendError, BundleError) as error:
                print(f"{backend} {precision} failed: {error}", file=sys.stderr)
                failed = True
    if not found:
        raise BackendError("no backend could run; the reasons are above")
    rows = [{"reference": name, "tiles": len(tiles), **row(agreement), **conditions()} for agreement in found]
    write_csv(options.out, rows)
    table = TABLES["agreement"].markdown(rows) + "\n"
    options.out.with_suffix(".md").write_text(table)
    print(table)
    return 1 if failed or not all(agreement.holds for agreement in found) else 0


def reference_of(bundle: Bundle, checkpoint: Path | None) -> tuple[str, Reference]:
    """The name of the reference, and its answers.

    Raises:
        UsageError: the checkpoint cannot be loaded, or PyTorch is not installed.
    """
    if checkpoint is None:
        backend = BackendOptions(name="onnxruntime", precision="fp32").open(bundle, scenarios=Scenario, wanted=WANTED)

        def infer(scenario: Scenario, tile: Tile) -> Answer:
            answer = backend.infer(scenario, {sensor: tile[sensor] for sensor in scenario.sensors})
            return answer[Output.CLASSES], answer[Output.PROBABILITIES]

        return f"{backend.info.library}, fp32 graph", infer
    try:
        import torch

        from export.scenarios import inputs_of, scenario_module
        from train import checkpoint as checkpoints

        model, _ = checkpoints.load(checkpoint)
    except ImportError as error:
        raise UsageError(f"a checkpoint needs PyTorch ({error}): pip install 'gemmnet-edge[export,train]'") from error
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"--checkpoint takes a file of `python -m train.run`: {error}") from error
    modules = {scenario: scenario_module(model, scenario) for scenario in Scenario}

    def evaluate(scenario: Scenario, tile: Tile) -> Answer:
        with torch.inference_mode():
            classes, _, probabilities = modules[scenario](
                *(torch.from_numpy(tile[sensor])[None] for sensor in inputs_of(scenario))
            )
        return classes[0].numpy(), probabilities[0].numpy()

    return f"PyTorch {torch.__version__}, float32", evaluate


def agreements(
    bundle: Bundle,
    name: BackendName,
    precision: Precision,
    plans: Path | None,
    tiles: Sequence[Tile],
    expected: dict[Scenario, list[Answer]],
) -> list[Agreement]:
    """One backend and precision, all scenarios.

    Raises:
        EngineError: the backend cannot run it.
    """
    found = []
    with BackendOptions(name=name, precision=precision, plans=plans).open(
        bundle, scenarios=Scenario, wanted=WANTED
    ) as backend:
        for scenario in Scenario:
            same, largest, means = [], 0.0, []
            for tile, (classes, probabilities) in zip(tiles, expected[scenario], strict=True):
                answer = backend.infer(scenario, {sensor: tile[sensor] for sensor in scenario.sensors})
                same.append((answer[Output.CLASSES] == classes).mean())
                difference = np.abs(answer[Output.PROBABILITIES] - probabilities)
                largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max()))
                means.append(difference.mean())
            found.append(
                Agreement(
                    backend=backend.info,
                    scenario=scenario,
                    class_agreement=float(np.mean(same)),
                    max_probability_difference=largest,
                    mean_probability_difference=float(np.mean(means)),
                )
            )
    return found


def row(agreement: Agreement) -> dict[str, object]:
    """A line of the CSV."""
    backend = agreement.backend
    return {
        "backend": backend.name,
        "graph": backend.graph,
        "scenario": agreement.scenario.value,
        "class_agreement": round(agreement.class_agreement, 6),
        "max_probability_difference": float(f"{agreement.max_probability_difference:.3g}"),
        "mean_probability_difference": float(f"{agreement.mean_probability_difference:.3g}"),
        "within_tolerance": agreement.holds,
        "library": backend.library,
        "device": backend.device,
        "arithmetic": backend.precision,
    }


def precisions_of(bundle: Bundle, text: str | None, *more: ExecutionPrecision) -> list[Any]:
    """Those of ``--precisions``, by default every graph's that all of the bundle's scenarios have.

    Args:
        bundle: whose graphs.
        text: the option.
        more: what may be asked for beside graphs.

    Raises:
        UsageError: the bundle has no such precision.
    """
    available = [p for p in get_args(Precision) if all(p in bundle.manifest.graphs[scenario] for scenario in Scenario)]
    return available if text is None else listed(text, [*available, *more], "--precisions")


if __name__ == "__main__":
    sys.exit(main())
