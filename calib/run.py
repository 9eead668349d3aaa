"""Add INT8 graphs to a bundle that cost no more accuracy than allowed, with a report that shows it.

Examples:
    python -m calib.run --bundle bundles/mine --data runs/cache
    python -m calib.run --bundle bundles/mine --data runs/cache --budget 0.2 --overwrite
    python -m train.data.synthetic --out scenes --count 40; python -m calib.run --bundle bundles/mine --data scenes

--data is a folder of labelled scenes, each a folder with rgir, ndsm and labels as .npy (the training cache) or .tif.
Ranges are measured on some, layers chosen on others, and the published scores come from a third part: scenes named
scene_SEED by the seed ranges of training, validation and evaluation, any others by the hash of their name.

For each scenario: Model Optimizer places Q/DQ pairs; activations are clipped where the best of three methods says; each
layer is left floating in turn to see what it costs; one that does a third of all damage stays floating, and so do the
most sensitive ones until mF1 is within --budget of fp32. If that takes too many, nothing is written and the layers to
blame are named. Before they are published the graphs must give the golden tile with every instruction set that this
processor can be told to have (ONEDNN_MAX_CPU_ISA).

Stopped? The same command goes on where it was: finished work lies in --work by content. Needs no GPU.

Exit codes: 0 done; 2 options; 3 a scene; 4 --bundle or --work cannot be written; 5 the bundle, or the budget cannot be
kept; 6 a library; 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from engine.contract.command import command_parser
from engine.contract.errors import EngineError, InterruptedRunError, OutputError, UsageError

INSTALL = "pip install 'gemmnet-edge[calib]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        calibrate(options)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print(f"error: calibration needs {error.name or error}: {INSTALL}", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {options.work or _work_of(options.bundle)}", file=sys.stderr)
        return InterruptedRunError.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = command_parser("calib.run", __doc__)
    options.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle to add int8 graphs to")
    options.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of labelled scenes")
    options.add_argument("--budget", type=float, default=0.5, metavar="POINTS", help="mF1 that int8 may cost (0.5)")
    options.add_argument("--overwrite", action="store_true", help="replace the int8 graphs that are there")
    options.add_argument("--work", type=Path, metavar="DIR", help="intermediate results and report (BUNDLE.calib)")
    how = options.add_argument_group("how")
    how.add_argument("--methods", default="max,entropy,percentile", metavar="LIST", help="tried for ranges (all three)")
    how.add_argument("--min-int8-share", type=float, default=0.5, metavar="S", help="of the multiply-accumulates (0.5)")
    how.add_argument("--calibration-tiles", type=_count, default=32, metavar="N", help="to measure ranges on (32)")
    how.add_argument("--search-tiles", type=_count, default=24, metavar="N", help="to choose layers by (24)")
    how.add_argument("--sensitivity-tiles", type=_count, default=4, metavar="N", help="of those, to rank layers by (4)")
    how.add_argument("--evaluation-tiles", type=_count, default=100, metavar="N", help="for the final scores (100)")
    return options


def calibrate(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: it cannot be done; the bundle is as it was.
    """
    methods = tuple(name.strip() for name in options.methods.split(",") if name.strip())
    if not methods or set(methods) - {"max", "entropy", "percentile"}:
        raise UsageError(f"--methods takes max, entropy and percentile, received {options.methods!r}")
    if options.budget < 0 or not 0 <= options.min_int8_share <= 1:
        raise UsageError(
            f"--budget is at least 0 points and --min-int8-share lies in [0, 1], received {options.budget:g} and "
            f"{options.min_int8_share:g}"
        )

    # Here, so that --help answers without onnx and Model Optimizer.
    from calib import latency, samples, scenes
    from calib.findings import Settings
    from calib.page import write_report
    from calib.publish import PRECISION, int8_files, prove_on_copy, publish
    from calib.report import Report, tools
    from calib.store import TensorStore
    from calib.study import floating_graphs, study
    from engine.contract.bundle import Bundle
    from engine.contract.sensors import Scenario

    began = time.perf_counter()
    bundle = Bundle.load(options.bundle)
    manifest = bundle.manifest
    if not options.overwrite and any(PRECISION in by for by in manifest.graphs.values()):
        raise OutputError(f"{options.bundle} has int8 graphs already: add --overwrite to replace them")
    store = TensorStore(options.work or _work_of(options.bundle))

    roles = scenes.assign_roles(scenes.find_scenes(options.data))
    tiles = {role: scenes.tiles_of(found, manifest.tile_px) for role, found in roles.items()}
    chosen = samples.choose(
        tiles[scenes.Role.CALIBRATE], options.calibration_tiles, [spec.name for spec in manifest.classes]
    )
    settings = Settings(
        calibration=chosen,
        search=tuple(scenes.in_hash_order(tiles[scenes.Role.SEARCH])[: options.search_tiles]),
        evaluation=tuple(scenes.in_hash_order(tiles[scenes.Role.EVALUATE])[: options.evaluation_tiles]),
        sensitivity_tiles=options.sensitivity_tiles,
        methods=methods,
        budget_points=options.budget,
        min_int8_share=options.min_int8_share,
    )
    missing = [name for name, count in chosen.covered.items() if not count]
    _say(
        f"{len(chosen.tiles)} calibration tiles of {len(tiles[scenes.Role.CALIBRATE])}, {len(settings.search)} to "
        f"search and {len(settings.evaluation)} to evaluate; list {chosen.sha256[:12]}"
        + (f"; not covered: {', '.join(missing)}" if missing else ", every stratum covered")
    )

    graphs, studies = {}, []
    for scenario in Scenario:
        graphs[scenario], found = study(bundle, scenario, settings, store)
        studies.append(found)
        last = found.steps[-1]
        _say(
            f"{scenario}: {found.method}, {found.int8_share:.0%} of the multiply-accumulates int8, "
            f"{len(last.released)} layers left floating, {found.loss_points:+.2f} points of mF1 lost"
        )
    timings = []
    for scenario, graph in graphs.items():
        tile = settings.evaluation[0].read().inputs(scenario)
        timing = latency.measure(scenario, floating_graphs(bundle, scenario) | {PRECISION: graph}, tile)
        timings.append(timing)
        _say(f"{scenario}: " + ", ".join(f"{one.label} {one.median_ms:.1f} ms" for one in timing.latencies))
    proved = prove_on_copy(bundle, graphs, tools())
    _say(f"golden tile right with {', '.join([*proved, 'the instruction set in use'])}")
    published = publish(bundle, graphs, tools())
    path = write_report(Report.of(published, settings, studies, timings, command=sys.argv[1:]), chosen, store.root)
    added = sum(ref.size_bytes for ref in int8_files(published.manifest))
    _say(f"{published.root}: {added / 1e6:.2f} MB of int8; report {path}; {time.perf_counter() - began:.0f} s")


def _work_of(bundle: Path) -> Path:
    whole = bundle.resolve()
    return whole.with_name(f"{whole.name}.calib")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, received {number}")
    return number


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
