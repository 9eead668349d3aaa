"""End-to-end speed and memory of ``engine.run`` on large procedural GeoTIFFs, beside the bare backend.

    python -m benchmarks.throughput                                       4 and 64 Mpx, all three sensor settings
    python -m benchmarks.throughput --mpx 4,64,400 --sensors rgir,ndsm    the long one: 3 GB of disk under --folder
    python -m benchmarks.throughput --precision int8 --rounds 5

Per size and setting, one process after the other, round by round:

- the command as a user types it: end_to_end from opening the rasters to the published maps, stream without start-up
  and publishing;
- the inference library by itself as one would write it first (its default settings, one tile after the other) on the
  tiles of the same raster held in memory, same graph, same outputs: bare_loop;
- our backend on the same tiles with all its slots kept busy (MLPerf inference's *offline*), the most that could be
  reached if reading, composing and writing took no processor: bare_saturated.

Figures are medians over rounds, ratios medians of each round's ratio. share_* divide the wall clock of the process into
start-up (imports, checks, compiling; the end of the process too), stream and publishing. Within the stream the stages
overlap: read_busy and write_busy are the part of it in which the reading and the composing-and-writing thread worked,
stream_over_saturated is the backend's; latency_share_* say where a tile's own time went. Peak memory is the process's
own maximum resident set.

At the end, per setting, a line fitted by least squares through every round of every size: seconds of the whole process
against megapixels, and the slope of peak memory. They stand in each row of the setting, empty where there is one size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.command import at_least_one, exit_code_of, parser_of
from benchmarks.conditions import ROOT, conditions, write_csv
from benchmarks.rasters import Raster, write_raster
from benchmarks.rates import WANTED, bare_tiles_per_s, inputs_of, offline, open_bare, single_stream
from benchmarks.tables import TABLES
from benchmarks.tiles import tiles_of_run
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, UsageError
from engine.contract.sensors import Sensor, parse_sensors, scenario_for
from engine.record import TileTimes
from engine.tile_log import NAME as TILE_LOG_NAME
from engine.tile_log import STAGES, read_tile_log

SETTINGS = ("rgir,ndsm", "rgir", "ndsm")
BARE_TILES = 64
BURN_IN_TILES = 8

Round = dict[str, float]
"""What one round of one size and setting measured, by column."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the CSV."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="throughput-", dir=options.folder) as folder:
            rows = measure(options, Path(folder))
        print(TABLES["throughput"].markdown(rows))
        write_csv(options.out, [{**row, **conditions("openvino")} for row in rows])
        print(f"written: {options.out}")

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("throughput", __doc__, result="throughput.csv")
    parser.add_argument("--mpx", default="4,64", help="raster sizes in megapixels (default: 4,64)")
    parser.add_argument("--sensors", action="append", help="sensor setting, repeatable (default: all three)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--backend", default="auto", help="as engine.run takes it (default: auto)")
    parser.add_argument("--precision", default="auto", help="as engine.run takes it (default: auto)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for rasters and maps (default: a temporary one)")
    return parser


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Every size and setting, round by round; the rows of the CSV without their conditions.

    Raises:
        EngineError: an option makes no sense, or a process failed.
    """
    settings = options.sensors or list(SETTINGS)
    for setting in settings:
        parse_sensors(setting)  # says what is wrong before anything is written
    sizes = _sizes(options.mpx, Bundle.load(options.bundle).manifest.tile_px)
    at_least_one(options, "rounds")
    rows: list[dict[str, object]] = []
    fits: dict[str, list[Round]] = {setting: [] for setting in settings}
    with tqdm(total=len(sizes) * len(settings) * options.rounds, unit="round") as progress:
        for size in sizes:
            progress.set_description(f"writing {size:g} Mpx")
            raster = write_raster(folder, size)
            for setting in settings:
                rounds: list[Round] = []
                told: dict[str, Any] = {}
                for _ in range(options.rounds):
                    progress.set_description(f"{size:g} Mpx {setting}")
                    one, told = one_round(folder, raster, setting, options)
                    rounds.append(one)
                    progress.update()
                rows.append(row_of(size, setting, rounds, told))
                fits[setting] += rounds
            for path in raster[1].values():
                path.unlink()
    for setting, rounds in fits.items():
        fitted = fit_of(rounds) if len(sizes) > 1 else dict.fromkeys(FIT_COLUMNS)
        for row in rows:
            if row["sensors"] == setting.replace(",", "+"):
                row.update(fitted)
        if len(sizes) > 1:
            print(
                f"{setting.replace(',', '+'):<10} seconds = {fitted['fit_s_per_mpx']:g} x Mpx + {fitted['fit_s']:g}, "
                f"R2 {fitted['fit_r2']:g}; peak memory {fitted['fit_peak_rss_mib_per_mpx']:+g} MiB per Mpx"
            )
    return rows


def one_round(folder: Path, raster: Raster, setting: str, options: argparse.Namespace) -> tuple[Round, dict[str, Any]]:
    """The bare backend in a process, then the command in one; what was measured, and the command's run.json."""
    mpx, paths = raster
    loop, saturated = bare_in_process(paths, setting, options)
    told, times, wall_s = run_command(folder / "map", paths, setting, options)
    performance = told["performance"]
    stream_s, tiles_per_s = performance["stream_s"], performance["tiles_per_s"]
    stages_s = {stage: float(times.stages_ms[stage].sum()) / 1e3 for stage in STAGES}
    startup_s = wall_s - stream_s - performance["publish_s"]
    return {
        "raster_mpx": mpx,
        "end_to_end_mpx_per_s": performance["mpx_per_s"],
        "stream_tiles_per_s": tiles_per_s,
        "bare_loop_tiles_per_s": loop,
        "bare_saturated_tiles_per_s": saturated,
        "stream_over_loop": tiles_per_s / loop,
        "stream_over_saturated": tiles_per_s / saturated,
        "wall_s": wall_s,
        "share_startup": startup_s / wall_s,
        "share_stream": stream_s / wall_s,
        "share_publish": performance["publish_s"] / wall_s,
        "read_busy": stages_s["read"] / stream_s,
        "write_busy": stages_s["write"] / stream_s,
        **{f"latency_share_{stage}": spent / sum(stages_s.values()) for stage, spent in stages_s.items()},
        "peak_rss_mib": performance["peak_rss_mib"],
    }, told


def run_command(
    output: Path, paths: Mapping[Sensor, Path], setting: str, options: argparse.Namespace
) -> tuple[dict[str, Any], TileTimes, float]:
    """``engine.run`` in a process of its own: run.json, the times of its tiles, the wall clock of the whole process.

    Raises:
        BackendError: it failed, or ran other graphs than one per tile, which the bare backend is not compared with.
    """
    inputs = [word for sensor in parse_sensors(setting) for word in (f"--{sensor}", str(paths[sensor]))]
    words = ["--bundle", str(options.bundle.resolve()), "--backend", options.backend, "--precision", options.precision]
    command = [sys.executable, "-m", "engine.run", *inputs, *words, "--output", str(output), "--overwrite", "--quiet"]
    started = time.perf_counter()
    _run(command, f"engine.run on {setting}")
    wall_s = time.perf_counter() - started
    told = json.loads((output / "run.json").read_text())
    scenario, tiles = scenario_for(parse_sensors(setting)), told["tiling"]["tiles"]
    if told["result"]["inferences"].get(scenario) != tiles:
        raise BackendError(
            f"each of the {tiles} tiles must have run scenario {scenario} once, run.json counts "
            f"{told['result']['inferences']}: a sensor was judged dead, pass a bundle whose health limits fit the demo"
        )
    return told, TileTimes(read_tile_log(output / TILE_LOG_NAME)), wall_s


def bare_in_process(paths: Mapping[Sensor, Path], setting: str, options: argparse.Namespace) -> tuple[float, float]:
    """(loop, saturated) tiles per second of the backend alone, measured in a process of its own."""
    code = "import json, sys; from benchmarks.throughput import bare; print(json.dumps(bare(*sys.argv[1:])))"
    files = (str(paths[sensor]) for sensor in Sensor)
    words = [str(options.bundle.resolve()), options.backend, options.precision, setting, *files]
    loop, saturated = json.loads(_run([sys.executable, "-c", code, *words], "the bare backend").splitlines()[-1])
    return loop, saturated


def bare(bundle_root: str, backend: Any, precision: Any, setting: str, *files: str) -> tuple[float, float]:
    """Tiles per second on a run's own tiles held in memory, after burn-in: (library's plain loop, all slots busy).

    Where a library cannot be had by itself the loop is that of our backend, one tile after the other.
    """
    bundle, scenario = Bundle.load(Path(bundle_root)), scenario_for(parse_sensors(setting))
    assert scenario is not None, "parse_sensors gives at least one"
    paths = dict(zip(Sensor, map(Path, files), strict=True))
    tiles = tiles_of_run(bundle.manifest, {sensor: paths[sensor] for sensor in scenario.sensors}, BARE_TILES)
    inputs = inputs_of(scenario, tiles)
    with BackendOptions(name=backend, precision=precision).open(bundle, scenarios=[scenario], wanted=WANTED) as opened:
        single_stream(opened, scenario, inputs, BURN_IN_TILES)
        saturated = offline(opened, scenario, inputs, BARE_TILES)
        plain = open_bare(opened.info.name, bundle.graph(scenario, opened.info.graph), precision=precision)
        if plain is None:
            return 1e3 / float(np.mean(single_stream(opened, scenario, inputs, BARE_TILES))), saturated
    bare_tiles_per_s(plain, inputs, batch=1, count=BURN_IN_TILES)
    return bare_tiles_per_s(plain, inputs, batch=1, count=BARE_TILES), saturated


def row_of(size: float, setting: str, rounds: Sequence[Round], told: Mapping[str, Any]) -> dict[str, object]:
    """One line of the CSV."""
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    backend = told["backend"]
    return {
        "mpx": size,
        "sensors": setting.replace(",", "+"),
        "tiles": told["tiling"]["tiles"],
        **{name: float(f"{value:.4g}") for name, value in medians.items() if name != "raster_mpx"},
        "rounds": len(rounds),
        "library": backend["library"],
        "graph": backend["graph"],
        "precision": backend["precision"],
        "slots": backend["slots"],
        "threads": backend["threads"],
        "device": backend["device"],
    }


FIT_COLUMNS = ("fit_s_per_mpx", "fit_s", "fit_r2", "fit_peak_rss_mib_per_mpx")


def fit_of(rounds: Sequence[Round]) -> dict[str, float]:
    """Least squares over rounds of at least two sizes: seconds = fit_s_per_mpx x Mpx + fit_s, and how well it fits."""
    mpx, wall_s, rss_mib = (
        np.array([one[name] for one in rounds]) for name in ("raster_mpx", "wall_s", "peak_rss_mib")
    )
    slope, intercept = np.polyfit(mpx, wall_s, 1)
    unexplained = ((wall_s - slope * mpx - intercept) ** 2).sum() / ((wall_s - wall_s.mean()) ** 2).sum()
    values = (slope, intercept, 1 - unexplained, np.polyfit(mpx, rss_mib, 1)[0])
    return {name: float(f"{value:.5g}") for name, value in zip(FIT_COLUMNS, values, strict=True)}


def _sizes(text: str, tile_px: int) -> list[float]:
    try:
        sizes = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--mpx takes megapixels such as 4,64; received {text!r}") from error
    if not all(tile_px**2 / 1e6 <= size < float("inf") for size in sizes):
        raise UsageError(f"--mpx must be at least one tile of {tile_px} x {tile_px} px each; received {text!r}")
    return sizes


def _run(command: Sequence[str], what: str) -> str:
    """Standard output of a process that must succeed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BackendError(f"{what} ended with exit code {done.returncode}: {reason}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
