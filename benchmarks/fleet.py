"""A Ray cluster of three nodes on this machine: are the maps those of lone runs, whatever dies, and what does it cost?

    python -m benchmarks.fleet                           60 rasters
    python -m benchmarks.fleet --units 12 --million 0    a quick look

The nodes are `ray start` processes of their own on loopback, with a processor each. One process maps all units first,
with all processors (`one process`); then the cluster does (`cluster`). Then it does so again, into another folder, and
meanwhile a node is killed with SIGKILL, it and all its processes, and another is added (`node killed`). At last the
cluster looks at units that are all there (`all there`): what is left is scheduling and verification. `large` is one
raster as large as all, in blocks of rows; its seconds count from the driver's start. `list` and `books` are what a
driver does for so many units, without mapping them: reading the list, keeping the books.

One CSV row per case. `twice` counts units with more than one published marker over the time of the case; `differing`
counts units with a map that is not, byte for byte, that of a lone `engine.run`. Exit codes: 0 no unit is; 1 some are.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from benchmarks.command import parser_of
from benchmarks.conditions import ROOT, conditions, write_csv
from engine import demo
from engine.backends.options import BackendOptions
from engine.contract.sensors import Sensor
from engine.fleet.book import Book
from engine.fleet.lists import read_units
from engine.fleet.units import Unit
from engine.fleet.worker import UnitOutcome, UnitState
from engine.rasters.georeference import gdal_environment
from engine.rasters.map_reader import MAPS
from engine.record import peak_rss_mib
from engine.request import PATTERN, RasterFiles, RunRequest
from engine.runner import run

SIDE_PX = 640
BLOCKS = 6
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
"""The nodes listen on loopback alone."""


@dataclass(frozen=True, kw_only=True)
class FleetCase:
    """One pass over all units."""

    case: str
    units: int
    mpx: float
    workers: int
    mapped: int
    there: int
    seconds: float
    """From the first unit that ended to the last; of `large`, `list` and `books`, all of it."""
    units_per_s: float
    mpx_per_s: float
    efficiency: float | None = None
    """Throughput by that of one process."""
    ms_per_unit: float | None = None
    twice: int | None = None
    differing: int | None = None
    peak_mib: float | None = None
    """Of the process of `list` and `books`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Map, kill, compare, write the CSV."""
    parser = parser_of("fleet", __doc__, result="fleet.csv")
    parser.add_argument("--units", type=int, default=60, metavar="N", help="rasters (default: 60)")
    parser.add_argument("--million", type=int, default=10**6, metavar="N", help="lines of the long list (10^6; 0 none)")
    parser.add_argument("--part", choices=("list", "books"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        print(json.dumps(asdict(long_list(options.part, options.million))))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        folder = Path(name)
        write_units(folder / "rasters", options.units)
        model = ["--list", str(folder / "rasters"), "--bundle", str(options.bundle.resolve()), "--precision", "fp32"]
        alone = watch("one process", ["engine.run", *model, "--output", str(folder / "one")], options.units)
        shown(alone)
        cases = [alone, *on_a_cluster(model, folder, alone)]
        reference = lone_runs(folder, options.bundle, options.units)
        for place, (case, output) in enumerate(zip(cases, ("one", "whole", "killed", "killed", "blocks"), strict=True)):
            alone_in = lone_large(folder, options.bundle) if case.case == "large" else reference
            cases[place] = replaced(case, differing=differing(alone_in, folder / output))
            shown(cases[place])
    keep(options.out, cases)
    for part in ("list", "books") if options.million else ():
        command = [sys.executable, "-m", "benchmarks.fleet", "--part", part, "--million", str(options.million)]
        told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        cases.append(FleetCase(**json.loads(told.splitlines()[-1])))
        shown(cases[-1])
        keep(options.out, cases)
    print(f"written: {options.out}")
    return int(any(case.differing or case.twice for case in cases))


def keep(path: Path, cases: Sequence[FleetCase]) -> None:
    """Write the CSV."""
    write_csv(path, [{**asdict(case), **conditions("openvino")} for case in cases])


def write_units(folder: Path, units: int) -> None:
    """Windows of the demo scene at places of their own."""
    folder.mkdir()
    for sensor in Sensor:
        with rasterio.open(demo.SCENE[sensor]) as scene:
            for number in range(units):
                window = Window(
                    number * 97 % (scene.width - SIDE_PX), number * 61 % (scene.height - SIDE_PX), SIDE_PX, SIDE_PX
                )
                profile = {**scene.profile, "width": SIDE_PX, "height": SIDE_PX, "driver": "GTiff"}
                profile["transform"] = scene.window_transform(window)
                with rasterio.open(folder / f"{sensor}_{number:04d}.tif", "w", **profile) as file:
                    file.write(scene.read(window=window))


def on_a_cluster(model: Sequence[str], folder: Path, alone: FleetCase) -> Iterator[FleetCase]:
    """The cases on three nodes."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    fleet = ["engine.fleet", *model, "--address", address, "--output"]
    with node(port, head=True), node(port), node(port) as victim:
        case = watch("cluster", [*fleet, str(folder / "whole")], alone.units)
        yield shown(replaced(case, efficiency=round(case.mpx_per_s / alone.mpx_per_s, 3)))
        with node_later(port) as added:

            def kill_and_add(ended: int) -> None:
                if ended == alone.units // 3:
                    kill_tree(victim.pid)
                    added()

            case = watch("node killed", [*fleet, str(folder / "killed")], alone.units, kill_and_add)
            yield shown(replaced(case, efficiency=round(case.mpx_per_s / alone.mpx_per_s, 3)))
            case = watch("all there", [*fleet, str(folder / "killed")], alone.units)
            yield shown(replaced(case, ms_per_unit=round(1e3 / case.units_per_s, 2)))
            write_large(folder, alone.units)
            words = [str(folder / "large.csv") if "rasters" in word else word for word in fleet]
            mpx = megapixels(folder / "large" / "rgir_0.tif")
            words = [*words[:-1], "--cut", f"{mpx / BLOCKS:.3f}", "--output", str(folder / "blocks")]
            yield shown(watch("large", words, 1, mpx=mpx))


def write_large(folder: Path, units: int) -> None:
    """The demo scene again and again, with as many pixels as all units have, and a list of it alone."""
    (folder / "large").mkdir()
    names = {}
    for sensor in Sensor:
        names[sensor] = folder / "large" / f"{sensor}_0.tif"
        with rasterio.open(demo.SCENE[sensor]) as scene:
            times = -(-units * SIDE_PX**2 // (scene.width * scene.height))
            profile = {**scene.profile, "height": scene.height * times, "driver": "GTiff"}
            with rasterio.open(names[sensor], "w", **profile) as file:
                file.write(np.tile(scene.read(), (1, times, 1)))
    lines = [",".join(each) for each in (["name", *names], ["0000", *map(str, names.values())])]
    (folder / "large.csv").write_text("\n".join([*lines, ""]))


def megapixels(path: Path) -> float:
    """Of a raster."""
    with rasterio.open(path) as file:
        return float(file.width * file.height / 1e6)


def watch(
    name: str, words: Sequence[str], units: int, ended: Any = lambda _: None, mpx: float | None = None
) -> FleetCase:
    """Run a command on all units and listen to what it says."""
    began = time.monotonic()
    output = Path(words[words.index("--output") + 1])
    command = [sys.executable, "-m", *words, "--json"]
    times: list[float] = []
    markers: dict[str, tuple[int, int]] = {}
    states = dict.fromkeys(UnitState, 0)
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            told = json.loads(line)
            if told["event"] == "unit":
                times.append(time.monotonic())
                states[UnitState(told["state"])] += 1
                markers[told["unit"]] = identity(output / told["unit"])
                ended(len(times))
    if running.returncode:
        raise SystemExit(f"{name}: exit code {running.returncode}")
    record = json.loads((output / "fleet.json").read_text())
    share = (units - 1) / units or 1.0  # of what was mapped between the first that ended and the last
    seconds = times[-1] - (times[0] if units > 1 else began)
    mpx = mpx or units * SIDE_PX**2 / 1e6
    return FleetCase(
        case=name,
        units=units,
        mpx=round(mpx, 3),
        workers=max(len(record["workers"]), 1),
        mapped=states[UnitState.MAPPED],
        there=states[UnitState.THERE],
        seconds=round(seconds, 3),
        units_per_s=round(units * share / seconds, 3),
        mpx_per_s=round(mpx * share / seconds, 3),
        twice=sum(identity(output / unit) != marker for unit, marker in markers.items()) + len(times) - units,
    )


def identity(folder: Path) -> tuple[int, int]:
    """Of a published marker: another one is another file."""
    found = (folder / "unit.json").stat()
    return found.st_ino, found.st_mtime_ns


def lone_runs(folder: Path, bundle: Path, units: int) -> Path:
    """Each unit by a run of its own, which opens its own engines."""
    for number in range(units):
        paths = {sensor: folder / "rasters" / f"{sensor}_{number:04d}.tif" for sensor in Sensor}
        run_alone(paths, bundle, folder / "lone" / f"{number:04d}")
    return folder / "lone"


def lone_large(folder: Path, bundle: Path) -> Path:
    """The large raster by one run."""
    paths = {sensor: folder / "large" / f"{sensor}_0.tif" for sensor in Sensor}
    run_alone(paths, bundle, folder / "lone-large" / "0000")
    return folder / "lone-large"


def run_alone(paths: Mapping[Sensor, Path], bundle: Path, output: Path) -> None:
    """A run with the options of all others."""
    backend = BackendOptions(precision="fp32")
    with gdal_environment():
        run(RunRequest(source=RasterFiles(paths=paths), bundle=bundle, output=output, backend=backend, watch=True))


def differing(reference: Path, output: Path) -> int:
    """Units with a map that is not that of a lone run."""
    return sum(
        any((unit / f"{name}.tif").read_bytes() != (output / unit.name / f"{name}.tif").read_bytes() for name in MAPS)
        for unit in reference.iterdir()
    )


def long_list(part: str, lines: int) -> FleetCase:
    """What a driver does for every unit, but for handing it out."""
    with tempfile.TemporaryDirectory(prefix="fleet-list-") as name:
        path = Path(name) / "list.csv"
        with path.open("w") as file:
            file.write("rgir,ndsm\n")
            file.writelines(f"country/rgir_{number:07d}.tif,country/ndsm_{number:07d}.tif\n" for number in range(lines))
        began = time.perf_counter()
        units = read_units(path, sensor=None, pattern=PATTERN)
        if part == "books":
            began = time.perf_counter()
            keep_books(units, Path(name))
        seconds = time.perf_counter() - began
    return FleetCase(
        case=part,
        units=lines,
        mpx=0.0,
        workers=0,
        mapped=0,
        there=lines,
        seconds=round(seconds, 3),
        units_per_s=round(lines / seconds, 1),
        mpx_per_s=0.0,
        ms_per_unit=round(1e3 * seconds / lines, 5),
        peak_mib=round(peak_rss_mib(), 1),
    )


def keep_books(units: list[Unit], folder: Path) -> None:
    """Take and settle every unit."""
    with Book(units, folder, tell=lambda *_: None) as book:
        while (unit := book.take()) is not None:
            book.settle(unit, UnitOutcome(unit=unit.name, state=UnitState.THERE))
        book.close(bundle="")


@contextmanager
def node(port: int, *, head: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node with one processor; killed when the block ends."""
    where = ["--head", f"--port={port}"] if head else [f"--address=127.0.0.1:{port}"]
    ports = [
        f"--{name}-port={free_port()}"
        for name in ("node-manager", "object-manager", "runtime-env-agent", "metrics-export")
    ]
    ports += [f"--dashboard-agent-{name}-port={free_port()}" for name in ("listen", "grpc")]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *ports, "--block", "--num-cpus=1"]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--include-dashboard=false"]
    if not head:
        command.remove("--include-dashboard=false")
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if head:
            wait_for(port)
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


@contextmanager
def node_later(port: int) -> Iterator[Any]:
    """A node that starts when what is yielded is called."""
    opened: list[Any] = []

    def start() -> None:
        opened.append(node(port))
        opened[-1].__enter__()

    try:
        yield start
    finally:
        for each in opened:
            each.__exit__(None, None, None)


def kill_tree(pid: int) -> None:
    """SIGKILL for a process and all that came of it, as when a machine loses power."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    doomed = [pid]
    for each in doomed:
        doomed += [child for child, parent in parents.items() if parent == each]
    for each in doomed:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_for(port: int, longest_s: float = 120.0) -> None:
    """Until somebody listens there."""
    ends = time.monotonic() + longest_s
    while time.monotonic() < ends:
        with socket.socket() as trying:
            if trying.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"no Ray node listens on port {port} after {longest_s:g} s")


def replaced(case: FleetCase, **changes: Any) -> FleetCase:
    """With other values."""
    return FleetCase(**{**asdict(case), **changes})


def shown(case: FleetCase) -> FleetCase:
    """Say how it went."""
    print({name: value for name, value in asdict(case).items() if value is not None}, flush=True)
    return case


if __name__ == "__main__":
    sys.exit(main())
