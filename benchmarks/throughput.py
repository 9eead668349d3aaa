"""End-to-end speed and memory of ``engine.run`` on large procedural GeoTIFFs, beside the bare backend.

    python -m benchmarks.throughput                         4 and 64 Mpx, all three sensor settings
    python -m benchmarks.throughput --mpx 2,200 --sensors rgir,ndsm

Per size and setting, one process after the other, round by round:

- the command as a user types it: ``end_to_end`` from opening the rasters to the published maps, ``stream`` without
  start-up and publishing;
- OpenVINO by itself as one would write it first (default settings, one tile after the other), on tiles of the same
  raster held in memory, same graph, same outputs: ``bare_loop``;
- our backend on the same tiles with all its slots kept busy, the most that could be reached if reading, composing and
  writing took no processor: ``bare_saturated``.

Medians over rounds. Peak memory is the process's own maximum resident set.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import openvino
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window

from engine import demo
from engine.backends import open_backend
from engine.backends.base import Output
from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario, Sensor, parse_sensors, scenario_for

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "throughput.csv"
BARE_TILES = 64
VALID_PX = (680, 780)
"""Rows and columns of the demo scene, from its upper left corner, in which no sensor has a gap."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the CSV."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mpx", default="4,64", help="raster sizes in megapixels (default: 4,64)")
    parser.add_argument("--sensors", action="append", help="sensor setting, repeatable (default: all three)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; medians are reported (default: 3)")
    parser.add_argument("--bundle", type=Path, default=demo.BUNDLE, help="model (default: the demo's)")
    parser.add_argument("--csv", type=Path, default=RESULTS, help=f"result file (default: {RESULTS.name})")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mpx in (float(size) for size in options.mpx.split(",")):
            paths = write_raster(Path(folder), mpx)
            for setting in options.sensors or ["rgir,ndsm", "rgir", "ndsm"]:
                rows.append(measure(Path(folder), paths, setting, mpx, options.bundle, options.rounds))
                show(rows[-1])
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {options.csv}")
    return 0


def write_raster(folder: Path, mpx: float) -> dict[Sensor, Path]:
    """What both sensors saw of the demo scene, repeated over a square raster of that size, tiled and deflated.

    Every tile is valid in both sensors, so that each setting runs exactly one graph per tile, as the bare loop does.
    """
    side = round((mpx * 1e6) ** 0.5)
    paths = {}
    for sensor, source in demo.SCENE.items():
        paths[sensor] = folder / f"{sensor}_{mpx:g}.tif"
        with rasterio.open(source) as scene:
            pixels, profile = scene.read()[:, : VALID_PX[0], : VALID_PX[1]], scene.profile
        profile = {"driver": "GTiff", "count": profile["count"], "dtype": profile["dtype"], "nodata": profile["nodata"]}
        with rasterio.open(
            paths[sensor],
            "w",
            **profile,
            width=side,
            height=side,
            crs="EPSG:32632",
            transform=from_origin(500000, 5400000, 0.2, 0.2),
            tiled=True,
            blockxsize=512,
            blockysize=512,
            compress="deflate",
            bigtiff="if_safer",
        ) as file:
            for row in range(0, side, 512):
                height = min(512, side - row)
                rows = np.arange(row, row + height) % pixels.shape[1]
                cols = np.arange(side) % pixels.shape[2]
                file.write(pixels[:, rows][:, :, cols], window=Window(0, row, side, height))
    return paths


def measure(
    folder: Path, paths: dict[Sensor, Path], setting: str, mpx: float, bundle: Path, rounds: int
) -> dict[str, object]:
    """One row of the table: alternating rounds of the command and of the bare loop."""
    commands, bares = [], []
    for _ in range(rounds):
        bares.append(bare_tiles_per_s(bundle, setting, paths))
        commands.append(run_command(folder, paths, setting, bundle))
    loop, saturated = (statistics.median(rates) for rates in zip(*bares, strict=True))
    stream = statistics.median(run["performance"]["tiles_per_s"] for run in commands)
    return {
        "mpx": mpx,
        "sensors": setting.replace(",", "+"),
        "tiles": commands[0]["tiling"]["tiles"],
        "end_to_end_mpx_per_s": round(statistics.median(run["performance"]["mpx_per_s"] for run in commands), 3),
        "stream_tiles_per_s": round(stream, 2),
        "bare_loop_tiles_per_s": round(loop, 2),
        "bare_saturated_tiles_per_s": round(saturated, 2),
        "stream_over_loop": round(stream / loop, 3),
        "stream_over_saturated": round(stream / saturated, 3),
        "publish_s": statistics.median(run["performance"]["publish_s"] for run in commands),
        "wall_s": round(statistics.median(run["wall_s"] for run in commands), 2),
        "peak_rss_mib": statistics.median(run["performance"]["peak_rss_mib"] for run in commands),
        "rounds": rounds,
        "backend": commands[0]["backend"]["library"],
        "precision": commands[0]["backend"]["precision"],
        "device": commands[0]["backend"]["device"],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def run_command(folder: Path, paths: dict[Sensor, Path], setting: str, bundle: Path) -> dict:
    """``engine.run`` in a process of its own; what run.json says, and the wall clock of the whole process."""
    output = folder / "map"
    inputs = [word for sensor in parse_sensors(setting) for word in (f"--{sensor}", str(paths[sensor]))]
    options = ["--bundle", str(bundle.resolve()), "--output", str(output), "--overwrite", "--quiet"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "engine.run", *inputs, *options], cwd=ROOT, check=True)
    wall_s = time.perf_counter() - started
    return {**json.loads((output / "run.json").read_text()), "wall_s": wall_s}


def bare_tiles_per_s(bundle_root: Path, setting: str, paths: dict[Sensor, Path]) -> tuple[float, float]:
    """(loop, saturated) tiles per second of the backend alone, measured in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.throughput import bare; "
        "print(*bare(Path(sys.argv[1]), sys.argv[2], [Path(p) for p in sys.argv[3:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_root.resolve()), setting, *(str(paths[sensor]) for sensor in Sensor)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    loop, saturated = (float(word) for word in done.stdout.split())
    return loop, saturated


def bare(bundle_root: Path, setting: str, paths: Sequence[Path]) -> tuple[float, float]:
    """Tiles per second on tiles held in memory, after a warm-up: (plain OpenVINO loop, our backend, all slots busy)."""
    bundle = Bundle.load(bundle_root)
    scenario = scenario_for(parse_sensors(setting))
    assert scenario is not None
    tiles = tiles_in_memory(dict(zip(Sensor, paths, strict=True)), scenario, bundle.manifest.tile_px)

    model = openvino.Core().read_model(bundle.graph(scenario, "fp32"))
    wanted = (Output.CLASSES, Output.CONFIDENCE)
    pruned = openvino.Model([model.output(name.value) for name in wanted], model.get_parameters(), "bare")
    pruned.reshape({port: [1, *list(port.partial_shape)[1:]] for port in pruned.inputs})
    compiled = openvino.Core().compile_model(pruned, "CPU")

    def plain(tile: dict[Sensor, NDArray[np.generic]]) -> None:
        compiled({sensor.value: values[None] for sensor, values in tile.items()})

    loop = _rate(tiles, lambda picked: [plain(tile) for tile in picked])
    with open_backend("auto", bundle, scenarios=[scenario], wanted=wanted) as backend:

        def fly(picked: list[dict[Sensor, NDArray[np.generic]]]) -> None:
            flying = deque(backend.submit(scenario, tile) for tile in picked[: backend.info.slots])
            for tile in picked[backend.info.slots :]:
                flying.popleft().result()
                flying.append(backend.submit(scenario, tile))
            for last in flying:
                last.result()

        saturated = _rate(tiles, fly)
    return loop, saturated


def tiles_in_memory(
    paths: dict[Sensor, Path], scenario: Scenario, tile_px: int
) -> list[dict[Sensor, NDArray[np.generic]]]:
    """The first tiles of the raster, as the scenario's graph reads them."""
    tiles: list[dict[Sensor, NDArray[np.generic]]] = [{} for _ in range(BARE_TILES)]
    for sensor in scenario.sensors:
        with rasterio.open(paths[sensor]) as file:
            columns = file.width // tile_px
            for index in range(min(BARE_TILES, columns**2)):
                row, col = divmod(index, columns)
                tiles[index][sensor] = file.read(window=Window(col * tile_px, row * tile_px, tile_px, tile_px))
    whole = [tile for tile in tiles if tile]
    return [whole[index % len(whole)] for index in range(BARE_TILES)]


def _rate(tiles: list[dict[Sensor, NDArray[np.generic]]], run: Callable[[list], object]) -> float:
    run(tiles[:8])
    started = time.perf_counter()
    run(tiles)
    return len(tiles) / (time.perf_counter() - started)


def show(row: dict[str, object]) -> None:
    """One line on the terminal."""
    print(
        f"{row['mpx']:>6g} Mpx  {row['sensors']:<10} {row['end_to_end_mpx_per_s']:>7} Mpx/s end to end   "
        f"{row['stream_tiles_per_s']:>6} tiles/s streamed, {row['bare_loop_tiles_per_s']:>6} bare loop, "
        f"{row['bare_saturated_tiles_per_s']:>6} bare saturated   peak {row['peak_rss_mib']:>6} MiB"
    )


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
