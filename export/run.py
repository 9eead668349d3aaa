"""Export a checkpoint as a bundle: three ONNX graphs in fp32 and fp16 that share weights, checked against PyTorch.

Example:
    python -m train.run --preset edge --out runs/mine
    python -m train.evaluate runs/mine/best.safetensors
    python -m export.run runs/mine/best.safetensors --bundle bundles/mine
    python -m export.run runs/mine/best.safetensors --bundle bundles/fp32 --precision fp32 --explain
    python -m export.run runs/mine/best.safetensors --bundle bundles/mine --overwrite --golden-only
    python -m export.run runs/mine/best.safetensors --bundle bundles/coarse --gsd-range 0.1 0.6

Nothing appears under --bundle unless every graph gives PyTorch's answer in ONNX Runtime and in OpenVINO, and OpenVINO
gives it with every instruction set that this processor can be told to have (ONEDNN_MAX_CPU_ISA).
Exit codes: 0 done, 2 options, 3 golden scene, 4 output folder, 5 a graph differs, 6 a library.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contract.bundle import GOLDEN_LIMIT, Bundle, Precision, save_manifest
from engine.contract.command import command_parser
from engine.contract.errors import EngineError, UsageError
from engine.contract.files import FileRef
from engine.contract.proof import prove
from engine.contract.sensors import Scenario

if TYPE_CHECKING:
    from onnx import ModelProto

    from export.golden import GoldenInputs
    from train.system import System

DEFAULT_TILE_PX = 512
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
GOLDEN_TILES = 3
DEFAULT_SEED = 3_000_000
"""Of procedural scenes; training, validation and evaluation draw below."""


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = command_parser("export.run", __doc__)
    options.add_argument("checkpoint", type=Path, help="best.safetensors of a training run")
    options.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--tile", type=int, default=DEFAULT_TILE_PX, metavar="PX", help="side of a tile (512)")
    options.add_argument(
        "--halo", type=int, metavar="PX", help="context a tile needs on each side (measured on procedural scenes)"
    )
    options.add_argument(
        "--precision", default=",".join(PRECISIONS), metavar="LIST", help="fp32, or fp32,fp16 (the default)"
    )
    options.add_argument(
        "--explain", action="store_true", help="print what each rewrite of a graph did, and the types it computes in"
    )
    options.add_argument("--name", help="name of the bundle (the checkpoint's folder)")
    options.add_argument("--metrics", type=Path, metavar="FILE", help="scores (metrics.json beside the checkpoint)")
    options.add_argument(
        "--gsd-range",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="metres a pixel that the model maps best at, as measured; rasters outside are resampled (default: never)",
    )
    golden = options.add_argument_group("golden tiles")
    golden.add_argument(
        "--golden-tiles", type=int, default=GOLDEN_TILES, metavar="N", help=f"how many there are ({GOLDEN_TILES})"
    )
    golden.add_argument(
        "--golden-scene", type=Path, metavar="DIR", help="take the first one from DIR/rgir.tif and DIR/ndsm.tif"
    )
    golden.add_argument(
        "--golden-seed", type=int, default=DEFAULT_SEED, metavar="N", help=f"of procedural ones ({DEFAULT_SEED})"
    )
    golden.add_argument(
        "--golden-only", action="store_true", help="renew those of the bundle that is there (and its --gsd-range)"
    )
    options.add_argument(
        "--number",
        type=int,
        metavar="N",
        help="of the bundle: installations can refuse lower ones (one more than the bundle that is replaced)",
    )
    options.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")
    return options


def export_bundle(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: it cannot be done; nothing was published.
    """
    precisions = _precisions(options.precision)
    # Here, so that --help answers without PyTorch, and that a missing library is told before minutes of work.
    from export import golden, halo, pack, verify
    from export.onnx_graphs import write_graphs
    from train import checkpoint

    if "fp16" in precisions:
        import export.precision  # noqa: F401

    pack.check_target(options.bundle, overwrite=options.overwrite)
    try:
        model, info = checkpoint.load(options.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"a checkpoint of `python -m train.run` is needed: {error}") from error
    training = pack.training_of(options.checkpoint, info, options.metrics)
    _check_sizes(options.tile, options.halo, stride_px=model.config.stride_px)
    number = pack.number_of(options.bundle, options.number)
    tiles = _golden_tiles(options, options.tile)
    tile = tiles[0]
    best_gsd_m = _gsd_range(options.gsd_range)

    halo_px = options.halo
    if halo_px is None:
        _say("measuring the halo on two procedural scenes")
        scenes = [golden.synthetic_tile(seed=DEFAULT_SEED + i, size_px=2 * options.tile) for i in (1, 2)]
        measured = halo.measure_halo(halo.classifier(model), scenes, options.tile)
        halo_px = measured.halo_px
        _say(f"classes that more context leaves as they are\n{measured.table()}\nhalo {halo_px} px")

    graphs = _graphs(model, tile, precisions, explain=options.explain)
    with pack.publishing(options.bundle, overwrite=options.overwrite) as folder:
        shared = {kind: write_graphs(found, folder, kind) for kind, found in graphs.items()}
        for kind, found in shared.items():
            _say(
                f"weights in {kind} {found.weights.stat().st_size / 1e6:.2f} MB; "
                f"sharing saves {found.saved_bytes / 1e6:.2f} MB of {found.unshared_bytes / 1e6:.2f} MB"
            )
        _say("comparing with PyTorch in fp32, batches of 1 and 3")
        written = {scenario: {kind: found.graphs[scenario] for kind, found in shared.items()} for scenario in Scenario}
        _say(verify.parity_table(verify.verify(model, written, verify.batches_for(tile))))
        golden_path = folder / golden.GOLDEN_NAME
        golden.write_golden(golden_path, [(each, verify.answers(model, each)) for each in tiles])
        manifest = pack.manifest_of(
            folder,
            name=options.name or options.checkpoint.resolve().parent.name,
            info=info,
            training=training,
            shared=shared,
            golden=golden_path,
            golden_tiles=len(tiles),
            tile_px=options.tile,
            halo_px=halo_px,
            number=number,
            best_gsd_m=best_gsd_m,
        )
        save_manifest(manifest, folder)
        _prove(folder, precisions)

    bundle = Bundle.load(options.bundle)
    size = sum(ref.size_bytes for ref in bundle.manifest.files())
    _say(f"{options.bundle}: {size / 1e6:.2f} MB, tile {options.tile} px, halo {halo_px} px, {bundle.digest[:12]}")
    if training.confidence:
        _say("\n".join(map(str, training.confidence)))
    else:
        _say("confidence was not fitted: run `python -m train.temperature` on the checkpoint and export again")
    if not training.scores:
        _say("the manifest has no scores: run `python -m train.evaluate` on the checkpoint and export again")


def renew_golden(options: argparse.Namespace) -> None:
    """Give a bundle other golden tiles, and a range of resolutions if asked; graphs, weights and limits stay.

    Raises:
        EngineError: a graph of the bundle does not answer as the checkpoint, or it cannot be done; nothing changed.
    """
    from export import golden, pack, verify
    from train import checkpoint

    if not options.overwrite:
        raise UsageError("--golden-only changes the bundle that is there: add --overwrite")
    best_gsd_m = _gsd_range(options.gsd_range)
    bundle = Bundle.load(options.bundle)
    try:
        model, _ = checkpoint.load(options.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"a checkpoint of `python -m train.run` is needed: {error}") from error
    tiles = _golden_tiles(options, bundle.manifest.tile_px)
    with pack.publishing(options.bundle, overwrite=True) as folder:
        shutil.copytree(bundle.root, folder, dirs_exist_ok=True)
        path = folder / bundle.manifest.golden.path
        golden.write_golden(path, [(each, verify.answers(model, each)) for each in tiles])
        renewed = replace(
            bundle.manifest,
            golden=FileRef.of(path, folder),
            golden_tiles=len(tiles),
            number=pack.number_of(options.bundle, options.number),
            best_gsd_m=best_gsd_m or bundle.manifest.best_gsd_m,
        )
        save_manifest(renewed, folder)
        _prove(folder, tuple(dict.fromkeys(kind for found in renewed.graphs.values() for kind in found)))
    _say(f"{options.bundle}: {len(tiles)} golden tiles, {renewed.golden.size_bytes / 1e6:.2f} MB: sign it again")


def _golden_tiles(options: argparse.Namespace, tile_px: int) -> list[GoldenInputs]:
    """The scene's centre where one is given, then procedural scenes."""
    from export import golden

    if not 1 <= options.golden_tiles <= GOLDEN_LIMIT:
        raise UsageError(f"--golden-tiles must lie in 1..{GOLDEN_LIMIT}, received {options.golden_tiles}")
    tiles = [golden.scene_tile(options.golden_scene, tile_px)] if options.golden_scene else []
    seeds = range(options.golden_seed, options.golden_seed + options.golden_tiles - len(tiles))
    return [*tiles, *(golden.synthetic_tile(seed=seed, size_px=tile_px) for seed in seeds)]


def _prove(folder: Path, precisions: Sequence[Precision]) -> None:
    _say("running the golden tiles with every instruction set of this processor")
    _say(f"right with {', '.join([*prove(folder, ('auto', *precisions)), 'the one in use'])}")


def _graphs(
    model: System, tile: GoldenInputs, precisions: Sequence[Precision], *, explain: bool
) -> dict[Precision, dict[Scenario, ModelProto]]:
    """Every scenario in every precision; ``tile`` is of the size that is exported, and typical."""
    from export import surgery
    from export.onnx_graphs import export_graph, op_counts
    from export.scenarios import inputs_of

    graphs: dict[Precision, dict[Scenario, ModelProto]] = {kind: {} for kind in precisions}
    for scenario in Scenario:
        start = time.perf_counter()
        exported = export_graph(model, scenario, tile.rgir.shape[-1])
        graphs["fp32"][scenario], steps = surgery.operate(exported)
        before, after = op_counts(exported).total(), op_counts(graphs["fp32"][scenario]).total()
        _say(f"exported {scenario}: {before} nodes, {after} after surgery, in {time.perf_counter() - start:.0f} s")
        if explain:
            _say(surgery.explain(steps))
    if "fp16" in precisions:
        from export import precision

        for scenario, graph in graphs["fp32"].items():
            typical = {sensor.value: tile.sensor(sensor)[None] for sensor in inputs_of(scenario)}
            graphs["fp16"][scenario] = precision.to_fp16(graph, typical)
            _say(f"converted {scenario} to fp16")
            if explain:
                _say(precision.explain(graphs["fp16"][scenario]))
    return graphs


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        renew_golden(options) if options.golden_only else export_bundle(options)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print(f"error: export needs {error.name or error}: pip install 'gemmnet-edge[export,train]'", file=sys.stderr)
        return UsageError.exit_code
    return 0


def _precisions(text: str) -> tuple[Precision, ...]:
    asked = text.split(",")
    if "fp32" not in asked or set(asked) - set(PRECISIONS):
        raise UsageError(
            f"--precision must be fp32 or fp32,fp16, received {text!r}: fp16 is made from fp32, and int8 from both by "
            "`python -m calib.run`"
        )
    return tuple(precision for precision in PRECISIONS if precision in asked)


def _check_sizes(tile_px: int, halo_px: int | None, *, stride_px: int) -> None:
    step = max(32, stride_px)
    if tile_px < step or tile_px % step:
        raise UsageError(f"--tile must be a positive multiple of {step} px for this model, received {tile_px}")
    if halo_px is not None and not 0 <= 2 * halo_px < tile_px:
        raise UsageError(f"--halo must lie in [0, tile / 2), received {halo_px} px for a tile of {tile_px} px")


def _gsd_range(numbers: Sequence[float] | None) -> tuple[float, float] | None:
    if numbers is None:
        return None
    finest, coarsest = numbers
    if not 0 < finest <= coarsest < math.inf:
        raise UsageError(f"--gsd-range must be the finest and the coarsest metres a pixel, received {numbers}")
    return finest, coarsest


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
