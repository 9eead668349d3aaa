"""A long flight at a set rate: does memory grow, do file handles leak, does latency stay?

    python -m benchmarks.soak                                      20 minutes at 5 tiles a second
    python -m benchmarks.soak --minutes 3 --rate 10Hz --inject "ndsm:late@100-160,rgir:dark@300-330"
    python -m benchmarks.soak --live                               frames that land as files instead of a raster

One ``engine.run`` in a process of its own, replaying a virtual raster (the demo scene again and again) or fed with one
frame after the other; /proc tells its resident memory, open file descriptors and threads twice a second. The first
minute (a quarter of a shorter flight) is warm-up and the end, when maps are published, is left out. The slope of memory
is the median of all slopes between two samples (Theil 1950, Sen 1968), so that single jumps do not count, and beside it
stands the one of file descriptors. One CSV row per minute; that of minute "all" has the slopes.

Disk for the time of the run: 1 MB a tile. Exit codes: 0 done; 1 tiles were lost; else that of the flight.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.command import parser_of
from benchmarks.conditions import ROOT, conditions, write_csv
from benchmarks.rasters import write_flight, write_frames
from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from engine.journal import FOLDER
from engine.tile_log import TileRow, read_tile_log

SAMPLE_S = 0.5
FRAME_TEMPLATES = 8
KEPT_FRAMES = 100
"""Frames that stay in the live folder; older ones are removed, as a recorder would."""
MOST_SLOPES = 2000
"""Samples between which slopes are taken: as many pairs as fit into memory."""


@dataclass(frozen=True, kw_only=True)
class ProcessSample:
    """The process at one moment."""

    at_s: float
    rss_mib: float
    descriptors: int
    threads: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Fly, print, write the CSV."""
    parser = parser_of("soak", __doc__, result="soak.csv")
    parser.add_argument("--minutes", type=float, default=20.0, metavar="N", help="of flight (default: 20)")
    parser.add_argument("--rate", default="5Hz", metavar="HZ", help="tiles a second (default: 5Hz)")
    parser.add_argument("--inject", metavar="FAULTS", help="as engine.run takes them")
    parser.add_argument("--live", action="store_true", help="frames that land in a folder, one tile each")
    parser.add_argument("--folder", type=Path, help="for inputs and maps while it flies (default: a temporary one)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the flight ends too
    rate_hz = float(options.rate.lower().removesuffix("hz"))
    tiles = round(options.minutes * 60 * rate_hz)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.folder) as name:
        folder = Path(name)
        command = [sys.executable, "-m", "engine.run", "--bundle", str(options.bundle.resolve()), "--quiet"]
        command += ["--inject", options.inject] if options.inject else []
        manifest = Bundle.load(options.bundle).manifest
        if options.live:
            landing = folder / "landing"
            landing.mkdir()
            command += ["--live", str(landing), "--idle-exit", "5"]
            templates = write_frames(folder, manifest, FRAME_TEMPLATES)
            with flying(command, folder / "maps") as flight, feeding(landing, templates, tiles, rate_hz):
                samples = watch(flight, options.minutes)
        else:
            paths = write_flight(folder, manifest, tiles)
            command += [word for sensor, path in paths.items() for word in (f"--{sensor}", str(path))]
            with flying([*command, "--rate", options.rate], folder / "maps") as flight:
                samples = watch(flight, options.minutes)
        code = flight.returncode
        if code not in (0, 8):
            print(f"the flight ended with exit code {code}", file=sys.stderr)
            return code
        rows = list(read_tile_log(folder / "maps" / "tiles.csv"))
        ran = json.loads((folder / "maps" / "run.json").read_text())["backend"]
    table = tabulate(samples, rows, rate_hz)
    settings = {"source": "live" if options.live else "raster", "rate_hz": rate_hz, "inject": options.inject or ""}
    settings |= {"backend": ran["library"], "device": ran["device"], "precision": ran["precision"]}
    write_csv(options.out, [{**row, **settings, **conditions()} for row in table])
    show(table)
    print(f"written: {options.out}")
    return 1 if any(row.lost for row in rows) else 0


@contextmanager
def flying(command: Sequence[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The flight's process, once it is warm; ended with whoever started it."""
    flight = subprocess.Popen([*command, "--output", str(output)], cwd=ROOT)
    try:
        while flight.poll() is None and not (output / FOLDER / "journal.json").exists():
            time.sleep(0.05)
        yield flight
    finally:
        if flight.poll() is None:
            flight.terminate()
            flight.wait()


@contextmanager
def feeding(landing: Path, templates: Sequence[dict[Sensor, Path]], frames: int, rate_hz: float) -> Iterator[None]:
    """Let a frame land every 1 / rate seconds, in a thread."""
    stop = threading.Event()

    def land() -> None:
        started = time.monotonic()
        for number in range(frames):
            if stop.wait(max(0.0, started + number / rate_hz - time.monotonic())):
                return
            for sensor, template in templates[number % len(templates)].items():
                target = landing / f"{sensor}_{number:08d}.tif"
                part = target.with_suffix(".part")
                shutil.copyfile(template, part)
                part.rename(target)
                (landing / f"{sensor}_{number - KEPT_FRAMES:08d}.tif").unlink(missing_ok=True)

    feeder = threading.Thread(target=land, name="feed")
    feeder.start()
    try:
        yield
    finally:
        stop.set()
        feeder.join()


def watch(flight: subprocess.Popen[bytes], minutes: float) -> list[ProcessSample]:
    """Sample the process until it ends."""
    samples: list[ProcessSample] = []
    began = time.monotonic()
    with tqdm(
        total=round(minutes * 60),
        unit="s",
        file=sys.stderr,
        mininterval=1,
        bar_format="{l_bar}{bar}| {n:.0f}/{total} s",
    ) as bar:
        while flight.poll() is None:
            now = time.monotonic() - began
            sample = look(flight.pid, now)
            if sample is not None:
                samples.append(sample)
            bar.update(min(now, bar.total) - bar.n)
            time.sleep(SAMPLE_S)
    return samples


def look(process: int, at_s: float) -> ProcessSample | None:
    """What /proc says of a process; None when it has just ended."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
        )
        return ProcessSample(
            at_s=at_s,
            rss_mib=int(status["VmRSS"].split()[0]) / 1024,
            descriptors=sum(1 for _ in Path(f"/proc/{process}/fd").iterdir()),
            threads=int(status["Threads"]),
        )
    except (OSError, KeyError):
        return None


def tabulate(samples: Sequence[ProcessSample], tiles: Sequence[TileRow], rate_hz: float) -> list[dict[str, object]]:
    """One row per minute, then one over all of it with the slopes."""
    flown_s = len(tiles) / rate_hz
    minutes = max(1, round(flown_s / 60))
    table = [
        _row(minute, samples, tiles, rate_hz, 60.0 * minute, 60.0 * (minute + 1) if minute + 1 < minutes else flown_s)
        for minute in range(minutes)
    ]
    warm = min(60.0, flown_s / 4)
    steady = [sample for sample in samples if warm <= sample.at_s <= flown_s]
    at_h = np.array([sample.at_s for sample in steady]) / 3600
    memory = slope(at_h, np.array([sample.rss_mib for sample in steady]))
    handles = slope(at_h, np.array([float(sample.descriptors) for sample in steady]))
    whole = _row("all", samples, tiles, rate_hz, warm, flown_s)
    whole |= {"rss_slope_mib_per_h": round(memory, 2), "descriptor_slope_per_h": round(handles, 2)}
    return [*table, whole]


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Theil and Sen's: the median of the slopes between all pairs; NaN for fewer than two points."""
    if len(x) < 2:
        return float("nan")
    pick = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_SLOPES)).astype(int))
    first, second = np.triu_indices(len(pick), 1)
    x, y = x[pick], y[pick]
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def _row(
    minute: int | str,
    samples: Sequence[ProcessSample],
    tiles: Sequence[TileRow],
    rate_hz: float,
    start_s: float,
    stop_s: float,
) -> dict[str, object]:
    here = [sample for sample in samples if start_s <= sample.at_s < stop_s]
    due = tiles[round(start_s * rate_hz) : round(stop_s * rate_hz)]
    latency = np.array([row.latency_ms for row in due if not row.skipped])
    cuts = np.percentile(latency, (50, 99, 100)) if len(latency) else [float("nan")] * 3
    return {
        "minute": minute,
        "rss_mib": round(float(np.median([sample.rss_mib for sample in here])), 1) if here else "",
        "rss_max_mib": round(max(sample.rss_mib for sample in here), 1) if here else "",
        "descriptors_max": max((sample.descriptors for sample in here), default=""),
        "threads_max": max((sample.threads for sample in here), default=""),
        "tiles": len(due),
        "switches": sum(row.switched for row in due),
        "lost": sum(row.lost for row in due),
        "p50_ms": round(float(cuts[0]), 1),
        "p99_ms": round(float(cuts[1]), 1),
        "max_ms": round(float(cuts[2]), 1),
        "rss_slope_mib_per_h": "",
        "descriptor_slope_per_h": "",
    }


def show(table: Sequence[dict[str, object]]) -> None:
    """The table on the terminal."""
    names = [name for name in table[0] if "slope" not in name]
    print("  ".join(f"{name:>6}" for name in names))
    for row in table:
        print("  ".join(f"{row[name]!s:>{max(6, len(name))}}" for name in names))
    whole = table[-1]
    print(
        f"after warm-up: memory {whole['rss_slope_mib_per_h']} MiB/h, file descriptors "
        f"{whole['descriptor_slope_per_h']} per hour"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
