"""How well a bundle maps held-out scenes, per backend, precision and scenario, and what each costs against float32.

    python -m benchmarks.accuracy                                                           the demo bundle, 24 scenes
    python -m benchmarks.accuracy --checkpoint runs/demo/best.safetensors --synthetic 100   drop against PyTorch
    python -m benchmarks.accuracy --bundle B --data vaihingen:/data/Vaihingen --backends openvino
    python -m benchmarks.accuracy --backends openvino --precisions auto,fp32,int8           in bfloat16, where there is

Every graph maps the same windows of whole scenes, in raw sensor units and with the bundle's tile and halo, as in
flight; what counts of each window is its core, so that each labelled pixel counts once. mF1, mIoU (over the counted
classes) and OA (over all) come from one confusion matrix of all pixels, in percent.

The drop, in points, is against PyTorch in float32 when a checkpoint is given, else against the fp32 graph in ONNX
Runtime; the column ``reference`` says which, and the reference has rows of its own. ``same_class_percent`` is the
share of labelled pixels that get the reference's class: it tells two graphs apart where scores happen to agree.
``arithmetic`` is what the device computes the floating-point part of a graph in; ``auto`` is what the runtime would
take by itself, on processors with AMX or AVX512-BF16 the fp32 graph in bfloat16.

A backend or precision that is not there is left out with its reason. Exit code 6 when none runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.agreement import BACKENDS, Reference, precisions_of, reference_of
from benchmarks.command import at_least_one, exit_code_of, listed, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.rates import WANTED
from benchmarks.tables import TABLES
from benchmarks.tiles import Tile
from engine.backends.base import Backend, Output
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError, BundleError, InputError, UsageError
from engine.contract.sensors import Scenario, Sensor

if TYPE_CHECKING:
    from train.data.scenes import Scene
    from train.data.sources import Source
    from train.metrics import Confusion, Scores
    from train.predict import EvaluationTile

REFERENCE = "reference"
NEEDS = "scoring needs the data sources of training ({error}): pip install 'gemmnet-edge[export,train]'"


@dataclass(kw_only=True)
class ScoreTally:
    """One way to compute one scenario, and what it has scored so far."""

    backend: str
    precision: Precision
    scenario: Scenario
    library: str
    arithmetic: str
    confusion: Confusion
    same: int = 0
    """Labelled pixels with the reference's class."""

    def add(self, truth: NDArray[np.uint8], classes: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
        """Count pixels, uint8 of one shape; truth 255 is not counted."""
        self.confusion.add(truth, classes)
        self.same += int(np.count_nonzero((classes == expected) & (truth < len(self.confusion.matrix))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Score, print, write the CSV."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        rows = score(options)
        print(TABLES["accuracy"].markdown(rows))
        print(f"{rows[0]['scenes']} scenes ({rows[0]['data']}), against {rows[0]['reference']}")
        write_csv(options.out, rows)
        print(f"written to {options.out}")

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("accuracy", __doc__, result="accuracy.csv")
    parser.add_argument("--plans", type=Path, metavar="DIR", help="TensorRT plans (default: plans under the bundle)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the model the bundle was exported from")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="LIST", help="default: all three")
    parser.add_argument(
        "--precisions", metavar="LIST", help="of fp32, fp16, int8, auto (default: all graphs that the bundle has)"
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--synthetic", type=int, default=24, metavar="N", help="held-out procedural scenes (24)")
    data.add_argument("--data", metavar="SOURCE", help="synthetic:N, vaihingen:DIR, potsdam:DIR or folder:DIR")
    parser.add_argument("--part", choices=("validation", "test"), default="test", help="which scenes (test)")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    return parser


def score(options: argparse.Namespace) -> list[dict[str, object]]:
    """Do what the command line asks; the rows of the CSV, the reference's first.

    Raises:
        EngineError: it cannot be done.
    """
    bundle = Bundle.load(options.bundle)
    source, scenes = scenes_of(options, bundle)
    precisions = precisions_of(bundle, options.precisions, "auto")
    backends: list[BackendName] = listed(options.backends, BACKENDS, "--backends")
    name, reference = reference_of(bundle, options.checkpoint)
    with ExitStack() as stack:
        opened: list[Backend] = []
        for backend in backends:
            for precision in precisions:
                common = {"precision": precision, "threads": options.threads, "plans": options.plans}
                try:
                    found = BackendOptions(name=backend, **common).open(bundle, scenarios=Scenario, wanted=WANTED)
                except (BackendError, BundleError) as error:
                    print(f"{backend} {precision}: left out: {error}", file=sys.stderr)
                else:
                    opened.append(stack.enter_context(found))
        if not opened:
            raise BackendError("no backend could run; the reasons are above")
        tallies, tiles = run(bundle, reference, name, opened, scenes, source)
    about = {
        "reference": name,
        "data": source.describe(options.part),
        "scenes": len(scenes),
        "tiles": tiles,
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.digest[:12],
        **conditions(),
    }
    return [{**row, **about} for row in rows_of(tallies)]


def scenes_of(options: argparse.Namespace, bundle: Bundle) -> tuple[Source, list[Scene]]:
    """The scenes with labels and both sensors.

    Raises:
        UsageError: the data sources are not installed, or ``--synthetic`` is not positive.
        InputError: the data cannot be used, or tells other classes apart than the bundle.
    """
    at_least_one(options, "synthetic")
    try:
        from train.data.procedural import ProceduralSource
        from train.data.rasters import DataError
        from train.data.sources import open_source
        from train.evaluate import usable
    except ImportError as error:
        raise UsageError(NEEDS.format(error=error)) from error
    count = options.synthetic
    source: Source = ProceduralSource(cache=options.cache, count=1, validation_count=count, test_count=count)
    try:
        if options.data is not None:
            source = open_source(options.data, options.cache)
        classes = tuple(spec.name for spec in bundle.manifest.classes)
        if source.labels.names != classes:
            raise InputError(
                f"the data must have the bundle's classes, {', '.join(classes)}; {source.name} has "
                f"{', '.join(source.labels.names)}: score the bundle on data like that it was trained on"
            )
        scenes = [scene for scene in source.split(options.part) if usable(scene)]
    except (DataError, FileNotFoundError) as error:
        raise InputError(str(error)) from error
    if not scenes:
        raise InputError(
            f"scoring needs scenes with labels and both sensors; the {options.part} part of {source.name} has none: "
            "try the other --part, or check the data with `python -m train.data.check`"
        )
    return source, scenes


def run(
    bundle: Bundle,
    reference: Reference,
    name: str,
    backends: Sequence[Backend],
    scenes: Sequence[Scene],
    source: Source,
) -> tuple[list[ScoreTally], int]:
    """Map every tile with the reference and every backend; the tallies and the number of tiles."""
    from train.metrics import Confusion
    from train.predict import tiles

    def tally(backend: str, precision: Precision, scenario: Scenario, library: str, arithmetic: str) -> ScoreTally:
        return ScoreTally(
            backend=backend,
            precision=precision,
            scenario=scenario,
            library=library,
            arithmetic=arithmetic,
            confusion=Confusion(source.labels),
        )

    expected = {scenario: tally(REFERENCE, "fp32", scenario, name, "f32") for scenario in Scenario}
    found = {
        (backend, scenario): tally(
            backend.info.name, backend.info.graph, scenario, backend.info.library, backend.info.precision
        )
        for backend in backends
        for scenario in Scenario
    }
    side, halo, count = bundle.manifest.tile_px, bundle.manifest.halo_px, 0
    for scene in tqdm(scenes, desc="scoring", unit="scene"):
        for window in tqdm(tiles(scene, tile_px=side, halo_px=halo), desc="tiles", unit="tile", leave=False):
            count += 1
            tile, truth = whole_tile(window, side), window.labels[window.core]
            for scenario in Scenario:
                inputs = {sensor: tile[sensor] for sensor in scenario.sensors}
                right = reference(scenario, tile)[0][window.core]
                expected[scenario].add(truth, right, right)
                for backend in backends:
                    classes = backend.infer(scenario, inputs)[Output.CLASSES][window.core]
                    found[backend, scenario].add(truth, classes, right)
    return [*expected.values(), *found.values()], count


def whole_tile(window: EvaluationTile, side: int) -> Tile:
    """A window as a graph with a fixed tile takes it, mirrored where the scene ends before the tile does."""
    arrays = {Sensor.RGIR: window.rgir.numpy(), Sensor.NDSM: window.ndsm.numpy()}
    beyond = ((0, 0), *((0, side - length) for length in window.labels.shape))
    return {sensor: np.ascontiguousarray(np.pad(x, beyond, mode="symmetric")) for sensor, x in arrays.items()}


def rows_of(tallies: Sequence[ScoreTally]) -> Iterator[dict[str, object]]:
    """A line of the CSV for each."""
    scores: Mapping[Scenario, Scores] = {t.scenario: t.confusion.scores() for t in tallies if t.backend == REFERENCE}
    for tally in tallies:
        mine, right = tally.confusion.scores(), scores[tally.scenario]
        yield {
            "backend": tally.backend,
            "precision": tally.precision,
            "arithmetic": tally.arithmetic,
            "scenario": tally.scenario.value,
            "mf1_percent": round(100 * mine.mean_f1, 3),
            "miou_percent": round(100 * mine.mean_iou, 3),
            "oa_percent": round(100 * mine.overall_accuracy, 3),
            "drop_mf1_points": round(100 * (right.mean_f1 - mine.mean_f1), 3),
            "drop_miou_points": round(100 * (right.mean_iou - mine.mean_iou), 3),
            "same_class_percent": round(100 * tally.same / max(tally.confusion.pixels, 1), 4),
            "pixels": tally.confusion.pixels,
            "library": tally.library,
        }


if __name__ == "__main__":
    sys.exit(main())
