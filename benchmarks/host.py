"""What the host costs: the whole pipeline with a backend that answers at once, beside what GDAL alone would take.

    python -m benchmarks.host                            64 Mpx: each codec, block size, oddity and setting in turn
    python -m benchmarks.host --mpx 16 --rounds 1        quicker
    python -m benchmarks.host --cases deflate,warped     some of them

The first case is the usual one (deflate, 512 px blocks, both sensors, trusted, cross-faded, every core); each other one
differs in one thing. Per case and round two new processes run one after the other:

- the pipeline from opened rasters to published maps. Processor milliseconds a tile are told by stage; ``rest`` is what
  no stage counts: queues, threads, the interpreter;
- the floor: GDAL decodes every block once, a handle per core, and writes the same maps as the COG driver does by
  itself, from memory.

``wall_over_floor`` and ``cpu_over_floor`` are quotients of the two, for the stream and publishing together. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.command import at_least_one, exit_code_of, listed, parser_of
from benchmarks.conditions import ROOT, conditions, write_csv
from benchmarks.rasters import Layout, write_raster
from benchmarks.tables import TABLES
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError
from engine.contract.sensors import Sensor, parse_sensors


@dataclass(frozen=True, kw_only=True)
class HostCase:
    """One line of the table."""

    layout: Layout = field(default_factory=Layout)
    sensors: str = "rgir,ndsm"
    health: bool = False
    blend: str = "hann"
    cores: int | None = None
    """None is every one."""


CASES: Mapping[str, HostCase] = {
    "deflate": HostCase(),
    "health": HostCase(health=True),
    "blend-none": HostCase(blend="none"),
    "rgir": HostCase(sensors="rgir"),
    "ndsm": HostCase(sensors="ndsm"),
    "1-core": HostCase(cores=1),
    "2-cores": HostCase(cores=2),
    "256px": HostCase(layout=Layout(block_px=256)),
    "strips": HostCase(layout=Layout(block_px=None)),
    "edges": HostCase(layout=Layout(edges=True)),
    "warped": HostCase(layout=Layout(warped=True)),
    "zstd": HostCase(layout=Layout(codec="zstd")),
    "lerc": HostCase(layout=Layout(codec="lerc")),
    "jpeg": HostCase(layout=Layout(codec="jpeg")),
    "none": HostCase(layout=Layout(codec="none")),
}
STAGES: Mapping[str, tuple[str, ...]] = {
    "read": ("engine.rasters.raster:_Ordered.read_into", "engine.rasters.blocks:Blocks._decode"),
    "health": ("engine.health.monitor:Monitor.assess", "engine.health.monitor:Monitor.snapshot"),
    "audit": ("engine.health.audit:Auditor.examine",),
    "decide": ("engine.reader:make_job",),
    "compose": ("engine.sink:FrameSink.add",),
    "count": ("engine.journal:PixelCounts.of", "engine.journal:Statistics.add_tile"),
    "preview": ("engine.preview:Preview.add_job", "engine.preview:Preview.add_block", "engine.preview:Preview.save"),
    "write": ("engine.rasters.cog:MapWriter.write",),
    "journal": ("engine.sink:FrameSink.written", "engine.sink:FrameSink.checkpoint"),
    "publish": ("engine.sink:FrameSink.publish",),
}
"""Where processor time goes; what a function calls that has a stage of its own is that stage's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the CSV."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        at_least_one(options, "rounds")
        Bundle.load(options.bundle)  # says what is wrong before a raster is written
        cases = listed(options.cases, CASES, "--cases")
        with tempfile.TemporaryDirectory(prefix="host-", dir=options.folder) as folder:
            rows = measure(options, cases, Path(folder))
        print(TABLES["host"].markdown(rows))
        print(f"written: {options.out}")

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("host", __doc__, result="host.csv")
    parser.add_argument("--mpx", type=float, default=64.0, help="size of the rasters in megapixels (default: 64)")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {', '.join(CASES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for rasters and maps (default: a temporary one)")
    return parser


def measure(options: argparse.Namespace, names: Sequence[str], folder: Path) -> list[dict[str, object]]:
    """Every case, round by round; rasters of one layout are written once, and the CSV grows case by case."""
    rows: dict[str, dict[str, object]] = {}
    where = conditions("rasterio")
    layouts = list(dict.fromkeys(CASES[name].layout for name in names))
    with tqdm(total=len(names) * options.rounds, unit="round") as progress:
        for layout in layouts:
            progress.set_description("writing")
            mpx, paths = write_raster(folder, options.mpx, layout)
            for name in (name for name in names if CASES[name].layout == layout):
                rounds = []
                for _ in range(options.rounds):
                    progress.set_description(name)
                    rounds.append(one_round(CASES[name], paths, folder / "map", options.bundle))
                    progress.update()
                rows[name] = {"case": name, "mpx": mpx, "sensors": CASES[name].sensors.replace(",", "+")}
                for column in rounds[0]:
                    rows[name][column] = float(f"{statistics.median(one[column] for one in rounds):.4g}")
                write_csv(options.out, [{**rows[each], **where} for each in names if each in rows])
            for path in paths.values():
                path.unlink()
    return [rows[name] for name in names]


def one_round(case: HostCase, paths: Mapping[Sensor, Path], output: Path, bundle: Path) -> dict[str, float]:
    """The pipeline, then the floor, in a process each."""
    files = {sensor: str(paths[sensor]) for sensor in parse_sensors(case.sensors)}
    asked = {"files": files, "output": str(output), "bundle": str(bundle), "health": case.health, "blend": case.blend}
    pipeline = _in_process("pipeline", case, asked)
    floor = _in_process("floor", case, asked)
    tiles = pipeline.pop("tiles")
    return {
        "tiles": tiles,
        "tiles_per_s": tiles / pipeline["stream_s"],
        "cpu_ms_per_tile": pipeline["cpu_s"] * 1e3 / tiles,
        "wall_over_floor": (pipeline["stream_s"] + pipeline["publish_s"]) / floor["wall_s"],
        "cpu_over_floor": pipeline["cpu_s"] / floor["cpu_s"],
        "publish_s": pipeline["publish_s"],
        "publish_share": pipeline["publish_s"] / (pipeline["stream_s"] + pipeline["publish_s"]),
        "peak_rss_mib": pipeline["peak_rss_mib"],
        **{f"{stage}_ms": pipeline[stage] * 1e3 / tiles for stage in (*STAGES, "rest")},
        "floor_s": floor["wall_s"],
        "floor_cpu_ms_per_tile": floor["cpu_s"] * 1e3 / tiles,
        "floor_read_ms": floor["read_cpu_s"] * 1e3 / tiles,
        "floor_write_ms": (floor["cpu_s"] - floor["read_cpu_s"]) * 1e3 / tiles,
    }


def _in_process(what: str, case: HostCase, asked: Mapping[str, Any]) -> dict[str, float]:
    """A measurement in a process of its own, on the case's cores.

    Raises:
        BackendError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.host_process", what, json.dumps(asked)]
    cores = sorted(os.sched_getaffinity(0))[: case.cores]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode != 0:
        raise BackendError(f"the {what} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    sys.exit(main())
