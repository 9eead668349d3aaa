"""Time of one tile, per backend, precision and scenario, side by side in one run.

    python -m benchmarks.latency                                               the demo bundle, whatever runs here
    python -m benchmarks.latency --backends tensorrt --record                  and let the runtime choose by it
    python -m benchmarks.latency --backends openvino --precisions fp32,int8,auto --rounds 5

Latency is from handing a tile in host memory to the backend until its classes and confidence are in host memory again,
one tile at a time: copies to and from a device are inside, as in trtexec before TensorRT 11.1. Throughput has every
slot of the backend busy with the same tiles. Rounds alternate between all rows, so that a slow spell of the machine
touches each; a figure is the median over rounds (p90 and p99: of each round's percentile). ``auto`` is what the runtime
would take by itself: on processors with AMX or AVX512-BF16 the fp32 graph in bfloat16.

``--record`` writes the median into the records of the TensorRT plans, which decide what `--precision auto` loads.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.agreement import BACKENDS, listed
from benchmarks.conditions import conditions, write_csv
from benchmarks.tiles import Tile, tiles_of
from engine import demo
from engine.backends import BackendName, open_backend
from engine.backends.base import Backend, BackendInfo, ExecutionPrecision, Output
from engine.backends.plan_choice import BATCH
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, BundleError, EngineError, UsageError
from engine.contract.plan_cache import usable_plans
from engine.contract.plans import Host
from engine.contract.sensors import Scenario

RESULTS = Path(__file__).parent / "results" / "latency.csv"
WANTED = (Output.CLASSES, Output.CONFIDENCE)
PRECISIONS: tuple[ExecutionPrecision, ...] = ("fp32", "fp16", "int8", "auto")


@dataclass(kw_only=True)
class Row:
    """One backend, precision and scenario, and what each round measured."""

    backend: BackendName
    precision: ExecutionPrecision
    scenario: Scenario
    info: BackendInfo
    latencies_ms: list[np.ndarray] = field(default_factory=list)
    tiles_per_s: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """The median over rounds of each round's median."""
        return self.percentile_ms(50)

    def percentile_ms(self, percent: int) -> float:
        """The median over rounds of each round's percentile."""
        return float(np.median([np.percentile(latencies, percent) for latencies in self.latencies_ms]))

    def as_dict(self) -> dict[str, object]:
        """A line of the CSV."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            "graph": self.info.graph,
            "arithmetic": self.info.precision,
            "scenario": self.scenario.value,
            **{f"latency_p{percent}_ms": round(self.percentile_ms(percent), 3) for percent in (50, 90, 99)},
            "tiles_per_s": round(statistics.median(self.tiles_per_s), 2),
            "tiles_per_round": len(self.latencies_ms[0]),
            "rounds": len(self.latencies_ms),
            "slots": self.info.slots,
            "threads": self.info.threads,
            "library": self.info.library,
            "device": self.info.device,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the CSV."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        measure(options)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=demo.BUNDLE, help="model (default: the demo's)")
    parser.add_argument("--plans", type=Path, metavar="DIR", help="TensorRT plans (default: plans under the bundle)")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="LIST", help="default: all three")
    parser.add_argument("--precisions", metavar="LIST", help="of fp32, fp16, int8, auto (default: all that run)")
    parser.add_argument("--tiles", type=int, default=30, metavar="N", help="tiles per round and row (default: 30)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--record", action="store_true", help="write the medians into the TensorRT plans' records")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="result file")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: nothing can be measured.
    """
    if options.tiles < 1 or options.rounds < 1:
        raise UsageError(f"--tiles and --rounds must be at least 1, received {options.tiles} and {options.rounds}")
    bundle = Bundle.load(options.bundle)
    tiles = tiles_of(bundle, demo.SCENE, 3)
    rows: dict[tuple[str, str], list[Row]] = {}
    pairs = [
        (backend, precision)
        for backend in listed(options.backends, BACKENDS, "--backends")
        for precision in listed(options.precisions or ",".join(PRECISIONS), PRECISIONS, "--precisions")
    ]
    for number in tqdm(range(options.rounds), unit="round", disable=options.rounds == 1):
        for backend, precision in pairs if number == 0 else list(rows):
            try:
                with open_backend(
                    backend,
                    bundle,
                    scenarios=Scenario,
                    wanted=WANTED,
                    precision=precision,
                    threads=options.threads,
                    plans=options.plans,
                ) as opened:
                    mine = rows.setdefault(
                        (backend, precision),
                        [Row(backend=backend, precision=precision, scenario=s, info=opened.info) for s in Scenario],
                    )
                    for row in mine:
                        one_round(row, opened, tiles, options.tiles)
            except (BackendError, BundleError) as error:
                if number:
                    raise
                tqdm.write(f"{backend} {precision}: left out: {error}", file=sys.stderr)
    if not rows:
        raise BackendError("no backend could run; the reasons are above")
    measured = [row for mine in rows.values() for row in mine]
    for row in measured:
        print(
            f"{row.backend:<12}{row.precision:<6}{row.scenario:<14}{row.median_ms:9.3f} ms   p99 "
            f"{row.percentile_ms(99):9.3f} ms   {statistics.median(row.tiles_per_s):9.1f} tiles/s   {row.info}"
        )
    write_csv(options.csv, [{**row.as_dict(), **conditions()} for row in measured])
    if options.record:
        record(bundle, options.plans, [row for row in measured if row.backend == "tensorrt"])


def one_round(row: Row, backend: Backend, tiles: Sequence[Tile], count: int) -> None:
    """Warm up, then ``count`` tiles one at a time, then ``count`` tiles with every slot busy."""
    inputs = [{sensor: tile[sensor] for sensor in row.scenario.sensors} for tile in tiles]
    for index in range(max(3, backend.info.slots)):
        backend.infer(row.scenario, inputs[index % len(inputs)])
    latencies = np.empty(count)
    for index in range(count):
        started = time.perf_counter()
        backend.infer(row.scenario, inputs[index % len(inputs)])
        latencies[index] = (time.perf_counter() - started) * 1e3
    row.latencies_ms.append(latencies)
    flying = deque(backend.submit(row.scenario, inputs[i % len(inputs)]) for i in range(backend.info.slots))
    started = time.perf_counter()
    for index in range(count):
        flying.popleft().result()
        flying.append(backend.submit(row.scenario, inputs[index % len(inputs)]))
    row.tiles_per_s.append(count / (time.perf_counter() - started))
    for last in flying:
        last.result()


def record(bundle: Bundle, plans: Path | None, rows: Sequence[Row]) -> None:
    """Keep the medians with the plans that were measured.

    Raises:
        BackendUnavailableError: there is no CUDA device.
        OutputError: the records cannot be written.
    """
    from engine.backends.device import first_device

    device = first_device()
    for row in rows:
        if row.precision == "auto":
            continue
        name, version = row.info.library.split()
        host = Host(
            library="tensorrt" if name == "tensorrt" else "tensorrt_rtx", library_version=version, device=device
        )
        plan = usable_plans(bundle, host, cache=plans, batch=BATCH)[row.scenario][row.info.graph]
        plan.with_latency(round(row.median_ms, 4), device)
        print(f"recorded {row.median_ms:.3f} ms with {plan.path.name}")


if __name__ == "__main__":
    sys.exit(main())
