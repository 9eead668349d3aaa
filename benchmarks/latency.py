"""Time of one tile, per backend, precision and scenario, side by side in one run.

    python -m benchmarks.latency                                               the demo bundle, whatever runs here
    python -m benchmarks.latency --backends tensorrt --record                  and let the runtime choose by it
    python -m benchmarks.latency --backends openvino --precisions fp32,int8,auto --rounds 5
    python -m benchmarks.latency --cold-starts 0 --max-batch 0                 steady state and switches only

Every backend takes one tile at a time (batch 1). OpenVINO is measured under both of the runtime's hints: ``throughput``
computes several tiles at a time, ``latency`` one on all cores (``engine.run --hint``). Columns, by MLPerf inference's
names (inference_rules.adoc of https://github.com/mlcommons/inference_policies; not its run lengths):

- single_stream_*: latency from handing over a tile in host memory until its classes and confidence are in host memory,
  the next tile only then. On a GPU both copies are inside, as in trtexec before TensorRT 11.1. jitter is p99 / p50.
- offline_tiles_per_s: every slot of the backend busy with tiles that are all there.
- switch_p50_ms: the first tile of the scenario after --switch-after tiles of another one, all engines resident;
  switch_over_steady is its ratio to single_stream_p50_ms.
- cold_*: a new process to its first result, stage by stage, all three scenarios opened; one figure for the three.
  cold_start_cached_ms is with what an earlier start kept: compiled graphs (OpenVINO) or kernels (TensorRT-RTX).
- batch1_* and best_batch*: the library by itself with its default settings, on batches of 1, 2, 4 up to --max-batch.
- h2d_ms, compute_ms, d2h_ms: trtexec's H2D latency, GPU compute time and D2H latency
  (https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/command-line-programs.html), by CUDA events; TensorRT
  only. Never executed on a GPU so far.

Rounds alternate between all rows, so that a slow spell of the machine touches each; each begins with --burn-in tiles
that do not count. A figure is the median over rounds (percentiles: of each round's). ``auto`` is what the runtime would
take by itself: on processors with AMX or AVX512-BF16 the fp32 graph in bfloat16.

--record writes the median into the records of the TensorRT plans, which decide what `--precision auto` loads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.agreement import BACKENDS
from benchmarks.cold_start import STAGES, cold_starts
from benchmarks.command import at_least_one, exit_code_of, listed, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.device_times import PARTS, device_times, host_of
from benchmarks.rates import (
    WANTED,
    bare_tiles_per_s,
    first_after_switch,
    hints_of,
    inputs_of,
    offline,
    open_bare,
    single_stream,
)
from benchmarks.tables import TABLES
from benchmarks.tiles import Tile, tiles_of
from engine import demo
from engine.backends.base import Backend, BackendInfo, ExecutionPrecision, PerformanceHint
from engine.backends.options import BackendName, BackendOptions
from engine.backends.plan_choice import BATCH
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, BundleError
from engine.contract.plan_cache import default_cache, usable_plans
from engine.contract.sensors import Scenario

PRECISIONS: tuple[ExecutionPrecision, ...] = ("fp32", "fp16", "int8", "auto")
PERCENTILES = (50, 90, 95, 99)
Choice = tuple[BackendName, ExecutionPrecision, PerformanceHint]


@dataclass(kw_only=True)
class LatencyRow:
    """One backend, precision and scenario, and what each round measured."""

    backend: BackendName
    precision: ExecutionPrecision
    hint: PerformanceHint
    scenario: Scenario
    info: BackendInfo
    latencies_ms: list[np.ndarray] = field(default_factory=list)
    tiles_per_s: list[float] = field(default_factory=list)
    switches_ms: list[np.ndarray] = field(default_factory=list)
    batches: dict[int, list[float]] = field(default_factory=dict)
    """Tiles per second of the library by itself, by batch."""
    device_ms: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    cold: list[tuple[dict[str, float], dict[str, float] | None]] = field(default_factory=list)
    """Stages without and with kept kernels; shared by the scenarios of a backend and precision."""

    @property
    def median_ms(self) -> float:
        """The median over rounds of each round's median."""
        return self.percentile_ms(50)

    def percentile_ms(self, percent: int) -> float:
        """The median over rounds of each round's percentile."""
        return float(np.median([np.percentile(latencies, percent) for latencies in self.latencies_ms]))

    def as_dict(self) -> dict[str, object]:
        """A line of the CSV; what was not measured is empty."""
        switch_ms = float(np.median(self.switches_ms))
        rates = {batch: statistics.median(measured) for batch, measured in self.batches.items()}
        best = max(rates, key=rates.__getitem__, default=None)
        device_ms = {part: [float(np.median(times[part])) for times in self.device_ms] for part in PARTS}
        return {
            "backend": self.backend,
            "precision": self.precision,
            "hint": self.hint,
            "graph": self.info.graph,
            "arithmetic": self.info.precision,
            "scenario": self.scenario.value,
            "batch": BATCH,
            **{f"single_stream_p{cut}_ms": round(self.percentile_ms(cut), 3) for cut in PERCENTILES},
            "jitter_p99_over_p50": round(self.percentile_ms(99) / self.median_ms, 3),
            "offline_tiles_per_s": round(statistics.median(self.tiles_per_s), 2),
            "switch_p50_ms": round(switch_ms, 3),
            "switch_over_steady": round(switch_ms / self.median_ms, 3),
            "switches": sum(map(len, self.switches_ms)),
            **{f"{part}_ms": round(statistics.median(ms), 4) if ms else None for part, ms in device_ms.items()},
            **self._cold_columns(),
            "batch1_tiles_per_s": round(rates[1], 2) if rates else None,
            "best_batch": best,
            "best_batch_tiles_per_s": None if best is None else round(rates[best], 2),
            "tiles_per_round": len(self.latencies_ms[0]),
            "rounds": len(self.latencies_ms),
            "slots": self.info.slots,
            "threads": self.info.threads,
            "library": self.info.library,
            "device": self.info.device,
        }

    def _cold_columns(self) -> dict[str, object]:
        first = [stages for stages, _ in self.cold]
        kept = [sum(stages.values()) for _, stages in self.cold if stages is not None]
        return {
            "cold_start_ms": round(statistics.median(sum(stages.values()) for stages in first)) if first else None,
            **{
                f"cold_{stage}_ms": round(statistics.median(stages[stage] for stages in first)) if first else None
                for stage in STAGES
            },
            "cold_start_cached_ms": round(statistics.median(kept)) if kept else None,
            "cold_starts": len(first),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the CSV."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(lambda: measure(options))


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("latency", __doc__, result="latency.csv")
    parser.add_argument("--plans", type=Path, metavar="DIR", help="TensorRT plans (default: plans under the bundle)")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="LIST", help="default: all three")
    parser.add_argument("--precisions", metavar="LIST", help="of fp32, fp16, int8, auto (default: all that run)")
    parser.add_argument("--tiles", type=int, default=30, metavar="N", help="tiles per round and row (default: 30)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--burn-in", type=int, default=5, metavar="N", help="tiles before each round (default: 5)")
    parser.add_argument("--switch-after", type=int, default=5, metavar="N", help="see above (default: 5)")
    parser.add_argument("--cold-starts", type=int, default=3, metavar="N", help="new processes (default: 3; 0: none)")
    parser.add_argument("--max-batch", type=int, default=4, metavar="N", help="see above (default: 4; 0: none)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--record", action="store_true", help="write the medians into the TensorRT plans' records")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: nothing can be measured.
    """
    at_least_one(options, "tiles", "rounds", "burn_in", "switch_after")
    bundle = Bundle.load(options.bundle)
    tiles = tiles_of(bundle, demo.SCENE, 3)
    rows: dict[Choice, list[LatencyRow]] = {}
    choices: list[Choice] = [
        (backend, precision, hint)
        for backend in listed(options.backends, BACKENDS, "--backends")
        for precision in listed(options.precisions or ",".join(PRECISIONS), PRECISIONS, "--precisions")
        for hint in hints_of(backend)
    ]
    for number in range(options.rounds):
        now = choices if number == 0 else list(rows)
        for choice in tqdm(now, unit="engine", desc=f"round {number + 1}/{options.rounds}", leave=False):
            backend, precision, hint = choice
            try:
                with BackendOptions(
                    name=backend, precision=precision, threads=options.threads, hint=hint, plans=options.plans
                ).open(bundle, scenarios=Scenario, wanted=WANTED) as opened:
                    mine = rows.setdefault(
                        choice,
                        [
                            LatencyRow(backend=backend, precision=precision, hint=hint, scenario=s, info=opened.info)
                            for s in Scenario
                        ],
                    )
                    for row in mine:
                        one_round(row, opened, tiles, options)
                for row in mine:
                    if hint == hints_of(backend)[0]:  # the library by itself knows no hint of ours
                        batches(row, bundle, tiles, options)
                    if backend == "tensorrt":
                        tile = inputs_of(row.scenario, tiles)[0]
                        row.device_ms.append(
                            device_times(bundle, row.info, row.scenario, tile, plans=options.plans, count=options.tiles)
                        )
            except (BackendError, BundleError) as error:
                if number or choice in rows:
                    raise
                tqdm.write(f"{backend} {precision}: left out: {error}", file=sys.stderr)
    if not rows:
        raise BackendError("no backend could run; the reasons are above")
    for mine in tqdm(list(rows.values()) * options.cold_starts, unit="start", desc="cold starts", leave=False):
        cold(mine, options)
    measured = [row for mine in rows.values() for row in mine]
    lines = [{**row.as_dict(), "burn_in_tiles": options.burn_in, **conditions()} for row in measured]
    print(TABLES["latency"].markdown(lines))
    write_csv(options.out, lines)
    print(f"written: {options.out}")
    if options.record:
        record(bundle, options.plans, [row for row in measured if row.backend == "tensorrt"])


def one_round(row: LatencyRow, backend: Backend, tiles: Sequence[Tile], options: argparse.Namespace) -> None:
    """Warm up, then tiles one at a time, then tiles with every slot busy, then switches to this scenario."""
    inputs = inputs_of(row.scenario, tiles)
    single_stream(backend, row.scenario, inputs, max(options.burn_in, backend.info.slots))
    row.latencies_ms.append(single_stream(backend, row.scenario, inputs, options.tiles))
    row.tiles_per_s.append(offline(backend, row.scenario, inputs, options.tiles))
    row.switches_ms.append(first_after_switch(backend, row.scenario, tiles, after=options.switch_after))


def batches(row: LatencyRow, bundle: Bundle, tiles: Sequence[Tile], options: argparse.Namespace) -> None:
    """The library by itself on batches of 1, 2, 4 and so on, where it can be had by itself."""
    batch = 1
    while batch <= options.max_batch:
        path = bundle.graph(row.scenario, row.info.graph)
        bare = open_bare(row.backend, path, batch=batch, precision=row.precision, threads=options.threads)
        if bare is None:
            return
        count = max(options.tiles // 3, batch)
        rate = bare_tiles_per_s(bare, inputs_of(row.scenario, tiles), batch=batch, count=count)
        row.batches.setdefault(batch, []).append(rate)
        batch *= 2


def cold(rows: Sequence[LatencyRow], options: argparse.Namespace) -> None:
    """One cold start of a backend and precision, noted in each of its rows."""
    plans = options.plans or default_cache(Bundle.load(options.bundle))
    request = {
        "backend": rows[0].backend,
        "precision": rows[0].precision,
        "bundle": str(options.bundle.resolve()),
        "threads": options.threads,
        "hint": rows[0].hint,
        "plans": str(plans.resolve()),
    }
    found = cold_starts(request)
    for row in rows:
        row.cold.append(found)


def record(bundle: Bundle, plans: Path | None, rows: Sequence[LatencyRow]) -> None:
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
        host = host_of(row.info, device)
        plan = usable_plans(bundle, host, cache=plans, batch=BATCH)[row.scenario][row.info.graph]
        plan.with_latency(round(row.median_ms, 4), device)
        print(f"recorded {row.median_ms:.3f} ms with {plan.path.name}")


if __name__ == "__main__":
    sys.exit(main())
