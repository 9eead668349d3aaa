"""End-to-end speed and memory of ``engine.run`` on large procedural GeoTIFFs, beside the bare backend.

    python -m benchmarks.throughput                         4 and 64 Mpx, all three sensor settings
    python -m benchmarks.throughput --mpx 2,200 --sensors rgir,ndsm

Per size and setting, one process after the other and round by round: the command as a user types it, from opening the
rasters to the published maps (``end_to_end``, and ``stream`` without start-up and publishing), and the bare backend
called in a loop, one tile at a time over all cores, on tiles of the same raster held in memory (``bare``). The ratio
compares tiles per second. Medians over rounds. Peak memory is the process's own maximum resident set.
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
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from engine import demo
from engine.backends import open_backend
from engine.backends.base import Output
from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor, parse_sensors, scenario_for

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "throughput.csv"
BARE_TILES = 48


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
    """The demo scene repeated over a square raster of that size, tiled and deflated, written band of rows by band."""
    side = round((mpx * 1e6) ** 0.5)
    paths = {}
    for sensor, source in demo.SCENE.items():
        paths[sensor] = folder / f"{sensor}_{mpx:g}.tif"
        with rasterio.open(source) as scene:
            pixels, profile = scene.read(), scene.profile
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
    bare = statistics.median(bares)
    stream = statistics.median(run["performance"]["tiles_per_s"] for run in commands)
    return {
        "mpx": mpx,
        "sensors": setting.replace(",", "+"),
        "tiles": commands[0]["tiling"]["tiles"],
        "end_to_end_mpx_per_s": round(statistics.median(run["performance"]["mpx_per_s"] for run in commands), 3),
        "stream_tiles_per_s": round(stream, 2),
        "bare_tiles_per_s": round(bare, 2),
        "stream_over_bare": round(stream / bare, 3),
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


def bare_tiles_per_s(bundle_root: Path, setting: str, paths: dict[Sensor, Path]) -> float:
    """The backend alone: tiles in memory, one after the other, each over all cores. Runs in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.throughput import bare_loop; "
        "print(bare_loop(Path(sys.argv[1]), sys.argv[2], {s: Path(p) for s, p in zip(['rgir', 'ndsm'], sys.argv[3:])}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_root.resolve()), setting, *(str(paths[sensor]) for sensor in Sensor)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def bare_loop(bundle_root: Path, setting: str, paths: dict[str, Path]) -> float:
    """Tiles per second of ``Backend.infer`` in a loop after a warm-up."""
    bundle = Bundle.load(bundle_root)
    scenario = scenario_for(parse_sensors(setting))
    assert scenario is not None
    tile_px = bundle.manifest.tile_px
    tiles = []
    with rasterio.open(paths["rgir"]) as rgir, rasterio.open(paths["ndsm"]) as ndsm:
        per_row = max(1, rgir.width // tile_px)
        for index in range(8):
            window = Window(index % per_row * tile_px, index // per_row * tile_px, tile_px, tile_px)
            heights = np.nan_to_num(ndsm.read(window=window), nan=0.0)
            tile = {Sensor.RGIR: rgir.read(window=window), Sensor.NDSM: np.where(heights < -100, 0, heights)}
            tiles.append({sensor: np.ascontiguousarray(tile[sensor]) for sensor in scenario.sensors})
    wanted = (Output.CLASSES, Output.CONFIDENCE)
    with open_backend("auto", bundle, scenarios=[scenario], wanted=wanted) as backend:
        for tile in tiles:
            backend.infer(scenario, tile)
        started = time.perf_counter()
        for index in range(BARE_TILES):
            backend.infer(scenario, tiles[index % len(tiles)])
        return BARE_TILES / (time.perf_counter() - started)


def show(row: dict[str, object]) -> None:
    """One line on the terminal."""
    print(
        f"{row['mpx']:>6g} Mpx  {row['sensors']:<10} {row['end_to_end_mpx_per_s']:>7} Mpx/s end to end   "
        f"{row['stream_tiles_per_s']:>6} tiles/s streamed / {row['bare_tiles_per_s']:>6} bare = "
        f"{row['stream_over_bare']:>5}   peak {row['peak_rss_mib']:>6} MiB"
    )


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
