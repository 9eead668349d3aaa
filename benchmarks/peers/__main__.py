"""The engine against what one would use instead, side by side in one run: same tiles, same weights, same outputs.

    python -m benchmarks.peers                                       preset edge with random weights, tiles and a raster
    python -m benchmarks.peers --checkpoints demo=runs/demo/best.safetensors --bundles demo=engine/demo/bundle
    python -m benchmarks.peers --groups raster --mpx 16 --rounds 5
    python -m benchmarks.peers --presets paper,edge                  networks beside each other, and the first
    python -m benchmarks.peers --checkpoints paper=P.safetensors edge=E.safetensors --bundles edge=bundles/edge

One network: how long each library and tiler takes, and the ratio to the engine (above 1 the engine is faster). Several:
how long each takes in PyTorch eager, OpenVINO and the engine, in fp32 and int8, the ratio to the first network in the
same library, and how many times as fast as the first in PyTorch eager as it comes.

The weights are those of a checkpoint, or the random ones that a preset starts training from: speed does not depend on
them. Graphs are exported on the spot (a minute or more), unless --bundles names a bundle of the same checkpoint.
Agreement is the share of pixels to which PyTorch eager in float32 gives the same class. int8 is the bundle's; of many
networks, those exported here get it with every convolution quantised, as fast as int8 can be.

Tiles. single_stream_ms: one tile after the other, host memory to host memory, median. offline_ms: per tile, as many at
once as the library itself sees to. The names are MLPerf inference's, the run lengths are not
(https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc). The engine arranges OpenVINO for
either (``engine.run --hint``); PyTorch, ONNX Runtime and "OpenVINO infer" put all cores on each tile. fp32 is computed
in float32, on processors with bfloat16 as well. PyTorch runs in a process of its own, as its times depend on the state
of the heap; "memory kept" is PyTorch whose C library was told never to return memory (MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=1099511627776), which saves it making pages anew for each tile.

Rasters. Seconds from the raster to its classes, everything loaded and compiled before. The others start from a raster
in memory; engine.run, geoai, geo-inference and the loop over a DataLoader read and write GeoTIFF, and engine.run also
makes confidence, provenance, overviews and a journal: stricter on us. "cropped tiles" are the engine's, stitched by
their cores in memory. MONAI and geoai blend probabilities of windows that overlap by twice the halo, geo-inference by
half a window; other defaults are theirs.

Rounds alternate between all rows and each begins with another one; figures are medians over rounds, ratios medians of
the ratio in one round. What is not installed is left out with its pip command. Left out for good:
terratorch.tasks.tiled_inference, because importing terratorch imports torchvision, whose PyPI build is linked to CUDA
and does not load beside the CPU build of PyTorch (0.29.2: "operator torchvision::nms does not exist"), and terratorch
1.2 needs torchgeo 0.9, which needs Python 3.12; torchgeo 0.8 itself has no tiled prediction. On a CUDA device rows for
PyTorch fp16 eager, torch.compile max-autotune, CUDA graphs and TensorRT are added, which have never been executed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command import RESULTS, at_least_one, exit_code_of, listed, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.tables import TABLES
from benchmarks.tiles import tiles_of
from engine import demo
from engine.contract.errors import BackendUnavailableError, EngineError, UsageError

if TYPE_CHECKING:
    from benchmarks.peers.libraries import Opener
    from benchmarks.peers.rounds import ContestRow, LeftOut
    from benchmarks.peers.subject import Subject

DEFAULT_PRESET = "edge"
GROUPS = ("tile", "raster")
TABLE_OF = {"tile": "peers", "raster": "peers-raster"}
MODES = {"tile": ("single_stream_ms", "offline_ms"), "raster": ("raster_s",)}
SCENE_TILES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the CSV."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        try:
            compare(options)
        except ImportError as error:
            raise BackendUnavailableError(
                f"PyTorch and export are needed ({error}): pip install 'gemmnet-edge[export,train]'"
            ) from error

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("peers", __doc__)
    parser.add_argument("--presets", metavar="LIST", help=f"networks with random weights (default: {DEFAULT_PRESET})")
    named: dict[str, Any] = {"nargs": "+", "default": [], "action": "extend"}
    parser.add_argument("--checkpoints", **named, metavar="NAME=FILE", help="networks with trained weights")
    parser.add_argument("--bundles", **named, metavar="NAME=DIR", help="exported from the checkpoint of that name")
    parser.add_argument("--groups", default=",".join(GROUPS), metavar="LIST", help="of one network (default: both)")
    parser.add_argument("--mpx", type=float, default=4.0, metavar="N", help="size of the raster (default: 4)")
    parser.add_argument("--tile", type=int, default=512, metavar="PX", help="side of what is exported here (512)")
    parser.add_argument("--tiles", type=int, default=12, metavar="N", help="tiles per round and row (default: 12)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result (results/peers.csv, of several peers_models.csv)"
    )
    return parser


def compare(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: nothing can be compared.
    """
    at_least_one(options, "tiles", "rounds")
    groups = listed(options.groups, GROUPS, "--groups")
    presets = [name for name in (options.presets or "").split(",") if name]
    checkpoints, bundles = _named(options.checkpoints, "--checkpoints"), _named(options.bundles, "--bundles")
    if not presets and not checkpoints:
        presets = [DEFAULT_PRESET]
    twice = set(presets) & set(checkpoints)
    if twice or set(bundles) - set(checkpoints):
        raise UsageError(
            "each network needs a name of its own, and each bundle that of its checkpoint; received presets "
            f"{presets}, checkpoints {list(checkpoints)}, bundles {list(bundles)}"
        )

    # Here, so that --help and wrong options are answered without PyTorch.
    from benchmarks.peers import subject as subjects

    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        folder = Path(scratch)
        contest = [subjects.of_preset(preset, folder, options.tile) for preset in presets]
        contest += [
            subjects.of_checkpoint(name, path, bundles.get(name), folder, options.tile)
            for name, path in checkpoints.items()
        ]
        rows, left_out = measure(
            contest, groups, folder, options, exported_here=set(presets) | set(checkpoints) - set(bundles)
        )
    several = len(contest) > 1
    out = options.out or RESULTS / ("peers_models.csv" if several else "peers.csv")
    lines = lines_of(rows)
    write_csv(out, [{**line, "rounds": options.rounds, **conditions()} for line in lines])
    for name in ["peers-models"] if several else [TABLE_OF[group] for group in groups]:
        print(f"{TABLES[name].markdown(lines)}\n")
    for peer, reason in left_out.items():
        print(f"left out: {peer}: {reason}")


def measure(
    contest: Sequence[Subject],
    groups: Sequence[str],
    folder: Path,
    options: argparse.Namespace,
    *,
    exported_here: set[str],
) -> tuple[list[ContestRow], LeftOut]:
    """The rows, and who was left out with the reason.

    Raises:
        EngineError: the networks cannot be fed the same tiles.
    """
    from benchmarks.peers import libraries, rounds
    from benchmarks.peers import subject as subjects
    from benchmarks.peers.gpu import gpu_peers
    from benchmarks.peers.others import tilers_of
    from benchmarks.peers.tilers import RasterPair

    left_out: LeftOut = {}
    if len({subject.bundle.manifest.tile_px for subject in contest}) > 1:
        raise UsageError("networks are compared on the same tiles: pass bundles of one tile size, or --tile as theirs")
    peers: Mapping[tuple[str, str], Opener] = libraries.CPU_PEERS
    if len(contest) > 1:
        peers = {key: peers[key] for key in libraries.MODEL_PEERS}
        groups = ["tile"]
        contest = list(contest)
        for place, subject in enumerate(contest):
            if subject.name in exported_here:
                try:
                    contest[place] = subjects.with_int8(subject)
                except EngineError as error:
                    left_out[f"{subject.name}: int8"] = str(error)
    else:
        try:
            peers = {**peers, **gpu_peers()}
        except BackendUnavailableError as error:
            left_out["CUDA"] = str(error)
    rows: list[ContestRow] = []
    if "tile" in groups:
        tiles = tiles_of(contest[0].bundle, demo.SCENE, SCENE_TILES)
        rows += rounds.tile_group(contest, peers, tiles, rounds=options.rounds, count=options.tiles, left_out=left_out)
    if "raster" in groups:
        raster = RasterPair.write(folder, options.mpx)
        rows += rounds.raster_group(
            contest[0], tilers_of(peers), raster, folder, rounds=options.rounds, left_out=left_out
        )
    return rows, left_out


def lines_of(rows: Sequence[ContestRow]) -> list[dict[str, object]]:
    """Lines of the CSV: each row beside the engine's in the same scenario, or each network beside the first one."""
    from benchmarks.peers.libraries import EAGER, ENGINE
    from benchmarks.peers.rounds import ratio
    from benchmarks.peers.tilers import RUN, cropped

    first = rows[0].subject.name
    several = {row.subject.name for row in rows} != {first}
    by_name = {(row.subject.name, row.group, row.scenario, row.peer, row.precision): row for row in rows}
    lines = []
    for row in rows:
        others = {"over_engine": ENGINE if row.group == "tile" else cropped(ENGINE)}
        others |= {"over_run": RUN[0]} if row.group == "raster" else {}
        found = {name: by_name.get((first, row.group, row.scenario, peer, "fp32")) for name, peer in others.items()}
        if several:
            found = {
                "over_first": by_name.get((first, row.group, row.scenario, row.peer, row.precision)),
                "speedup_over_first_eager": by_name[first, row.group, row.scenario, EAGER, "fp32"],
            }
        line = _line(row)
        for mode in MODES[row.group]:
            for column, other in found.items():
                over = None if other is None else ratio(row, other, mode)
                if over is not None and "speedup" in column:
                    over = 1 / over
                if over is not None or several:
                    line[f"{mode.rpartition('_')[0]}_{column}"] = None if over is None else round(over, 3)
        lines.append(line)
    return lines


def _line(row: ContestRow) -> dict[str, object]:
    from benchmarks.peers.rounds import times_of

    medians = {mode: float(f"{statistics.median(times_of(row, mode)):.5g}") for mode in MODES[row.group]}
    return {
        "group": row.group,
        "network": row.subject.name,
        "weights": row.subject.weights,
        "scenario": row.scenario.value,
        "peer": row.peer,
        "precision": row.precision,
        "library": row.library,
        **medians,
        "ready_s": None if row.ready_s is None else round(row.ready_s, 2),
        "agreement": round(row.agreement, 6),
    }


def _named(words: Sequence[str], option: str) -> dict[str, Path]:
    pairs = [word.partition("=") for word in words]
    if not all(name and separator and path for name, separator, path in pairs):
        raise UsageError(f"{option} takes NAME=PATH, as in {option} edge=runs/edge; received {' '.join(words)!r}")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise UsageError(f"{option} names a network twice: {' '.join(words)}")
    return {name: Path(path) for name, _, path in pairs}


if __name__ == "__main__":
    sys.exit(main())
