"""One run of the roofline: peaks, tiles and profiles round by round, then tables and the plot."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import onnx
from tqdm import tqdm

from benchmarks.agreement import precisions_of
from benchmarks.command import listed
from benchmarks.conditions import conditions, write_csv
from benchmarks.rates import inputs_of, offline
from benchmarks.roofline import plot
from benchmarks.roofline.graph import GraphWork, count_work, deployed
from benchmarks.roofline.machine import Machine, Peaks
from benchmarks.roofline.profiling import Feed, OnnxRuntimeProfile, OpenVinoProfile, Profile, ProfileRow, rows_of
from benchmarks.tiles import Tile, tiles_of
from engine import demo
from engine.backends.base import Backend, Output
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Bundle, Precision
from engine.contract.sensors import Scenario

BACKENDS: tuple[BackendName, ...] = ("openvino", "onnxruntime")
DEFAULT_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
WANTED = (Output.CLASSES, Output.CONFIDENCE)
OUTPUTS = tuple(output.value for output in WANTED)


@dataclass(kw_only=True)
class ProfiledGraph:
    """One graph in one backend, and what its rounds measured."""

    backend: Backend
    precision: Precision
    scenario: Scenario
    work: GraphWork
    profile: Profile
    tile_ms: list[float] = field(default_factory=list)

    def measure(self, tiles: Sequence[Tile], count: int) -> None:
        """One round: tiles with every slot busy, then tiles one at a time with the profiler on."""
        inputs = inputs_of(self.scenario, tiles)
        self.tile_ms.append(1e3 / offline(self.backend, self.scenario, inputs, count))
        feed: Feed = {sensor.value: values[None] for sensor, values in inputs[0].items()}
        self.profile.run(feed, count)


def measure(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: it cannot be done.
    """
    bundle = Bundle.load(options.bundle)
    backends: list[BackendName] = listed(options.backends, BACKENDS, "--backends")
    available = precisions_of(bundle, options.precisions)
    precisions = [p for p in available if options.precisions is not None or p in DEFAULT_PRECISIONS]
    tiles = tiles_of(bundle, demo.SCENE, 3)
    with ExitStack() as stack:
        subjects = list(prepare(bundle, backends, precisions, options.threads, stack))
        machine = Machine(threads=options.threads)
        for _ in tqdm(range(options.rounds), desc="measuring", unit="round"):
            machine.measure()
            for subject in tqdm(subjects, desc="graphs", unit="graph", leave=False):
                subject.measure(tiles, options.tiles)
    peaks = machine.peaks()
    rows = {subject_key(subject): rows_of(subject.profile.nodes(), subject.work) for subject in subjects}
    about = {"bundle": bundle.manifest.name, "rounds": options.rounds, "tiles_per_round": options.tiles}
    about |= conditions()
    print_peaks(peaks)
    for subject in subjects:
        print_subject(subject, rows[subject_key(subject)], peaks, options.top)
    layers = options.out.with_name(f"{options.out.stem}_layers.csv")
    picture = options.out.with_suffix(".png")
    write_csv(options.out, [{**summary(subject, rows[subject_key(subject)], peaks), **about} for subject in subjects])
    lines = [line for subject in subjects for line in lines_of(subject, rows[subject_key(subject)], peaks)]
    write_csv(layers, [{**line, **about} for line in lines])
    plot.draw(picture, rows, peaks, f"{bundle.manifest.name}, {peaks.threads} threads, {about['date']}")
    print(f"written to {options.out}, {layers.name} and {picture.name}")


def prepare(
    bundle: Bundle,
    backends: Sequence[BackendName],
    precisions: Sequence[Precision],
    threads: int | None,
    stack: ExitStack,
) -> Iterator[ProfiledGraph]:
    """Every graph counted, opened and ready to be profiled.

    Raises:
        EngineError: a backend or a graph is not there.
    """
    for precision in precisions:
        models = {scenario: onnx.load(bundle.graph(scenario, precision)) for scenario in Scenario}
        works = {scenario: count_work(deployed(model, OUTPUTS)) for scenario, model in models.items()}
        for name in backends:
            backend = stack.enter_context(
                BackendOptions(name=name, precision=precision, threads=threads).open(
                    bundle, scenarios=Scenario, wanted=WANTED
                )
            )
            for scenario, model in models.items():
                profile: Profile
                if name == "openvino":
                    profile = OpenVinoProfile(model, OUTPUTS, precision, threads)
                else:
                    profile = OnnxRuntimeProfile(bundle.graph(scenario, precision), OUTPUTS, threads)
                yield ProfiledGraph(
                    backend=backend, precision=precision, scenario=scenario, work=works[scenario], profile=profile
                )


def subject_key(subject: ProfiledGraph) -> tuple[str, Precision, Scenario]:
    """What tells a subject from the others."""
    return subject.backend.info.name, subject.precision, subject.scenario


def summary(subject: ProfiledGraph, rows: Sequence[ProfileRow], peaks: Peaks) -> dict[str, object]:
    """A line of ``roofline.csv``."""
    work, info = subject.work, subject.backend.info
    tile_ms = statistics.median(subject.tile_ms)
    floor_ms, layers_ms = peaks.floor_ms(work), peaks.layers_floor_ms(work)
    profiled_ms = sum(row.node.ms for row in rows)
    int8 = peaks.gflops.get("int8")
    return {
        "backend": info.name,
        "precision": subject.precision,
        "arithmetic": info.precision,
        "scenario": subject.scenario.value,
        "gmac": round(work.macs / 1e9, 4),
        "int8_mac_share": round(work.mac_share("int8"), 4),
        "weights_mb": round(work.weight_bytes / 1e6, 3),
        "activations_mb": round(work.activation_bytes / 1e6, 2),
        "layers": len(work.layers),
        "peak_fp32_gflops": round(peaks.gflops["fp32"], 1),
        "peak_int8_gops": "" if int8 is None else round(int8, 1),
        "memory_gbs": round(peaks.memory_gbs, 2),
        "cache_gbs": round(max(peaks.copy_gbs.values()), 2),
        "floor_ms": round(floor_ms, 3),
        "floor_layers_ms": round(layers_ms, 3),
        "tile_ms": round(tile_ms, 3),
        "share_of_floor": round(floor_ms / tile_ms, 4),
        "share_of_floor_layers": round(layers_ms / tile_ms, 4),
        "profiled_ms": round(profiled_ms, 3),
        "share_without_products": round(sum(row.node.ms for row in rows if not row.owns) / profiled_ms, 4),
        "threads": peaks.threads,
        "slots": info.slots,
        "library": info.library,
        "remarks": "; ".join(peaks.remarks),
    }


def lines_of(subject: ProfiledGraph, rows: Sequence[ProfileRow], peaks: Peaks) -> Iterator[dict[str, Any]]:
    """Lines of ``roofline_layers.csv``: executed nodes, the slowest first."""
    total = sum(row.node.ms for row in rows)
    for rank, row in enumerate(rows, start=1):
        yield {
            "backend": subject.backend.info.name,
            "precision": subject.precision,
            "scenario": subject.scenario.value,
            "rank": rank,
            "node": row.node.name,
            "layer": row.layer.name if row.layer else "",
            "kernel": row.node.kernel,
            "type": row.node.type,
            "ms": round(row.node.ms, 4),
            "share": round(row.node.ms / total, 5),
            "mmac": round(row.macs / 1e6, 3),
            "gmac_per_s": round(row.macs / row.node.ms / 1e6, 2) if row.node.ms else "",
            "traffic_mb": round(sum(layer.traffic_bytes for layer in row.owns) / 1e6, 4),
            "floor_ms": round(sum(peaks.layer_floor_ms(layer) for layer in row.owns), 4),
            "bound": _bound(row, peaks),
        }


def print_peaks(peaks: Peaks) -> None:
    """What the machine can do."""
    products = ", ".join(f"{name} {gflops:.0f} GFLOP/s" for name, gflops in peaks.gflops.items())
    copies = ", ".join(f"{size / 2**20:g} MiB {rate:.1f}" for size, rate in peaks.copy_gbs.items())
    print(f"peak with {peaks.threads} threads: {products}; copies in GB/s: {copies}")
    for remark in peaks.remarks:
        print(f"  {remark}")


def print_subject(subject: ProfiledGraph, rows: Sequence[ProfileRow], peaks: Peaks, top: int) -> None:
    """A graph, and its slowest nodes."""
    told: Mapping[str, object] = summary(subject, rows, peaks)
    print(
        f"\n{told['backend']} {told['precision']} {told['scenario']}: {told['gmac']} GMAC, weights "
        f"{told['weights_mb']} MB, activations {told['activations_mb']} MB; {told['tile_ms']} ms a tile, floor "
        f"{told['floor_ms']} ms ({told['share_of_floor']:.0%}), by layers {told['floor_layers_ms']} ms "
        f"({told['share_of_floor_layers']:.0%}); {told['share_without_products']:.0%} of the time in nodes without a "
        "product"
    )
    for line in list(lines_of(subject, rows, peaks))[:top]:
        speed = f"{line['gmac_per_s']:8.1f} GMAC/s" if line["mmac"] else " " * 15
        # ONNX Runtime calls a fused node after a numbered tensor; the layer says which it is
        name = line["node"] if line["layer"] in line["node"] else f"{line['node']} ({line['layer']})"
        print(f"  {line['ms']:9.3f} ms {line['share']:6.1%} {speed} {line['type']:<5}{line['kernel'][:35]:<36}{name}")


def _bound(row: ProfileRow, peaks: Peaks) -> str:
    if not row.owns:
        return "no product"
    compute = sum(peaks.compute_ms(layer) for layer in row.owns)
    return "compute" if compute >= sum(peaks.memory_ms(layer) for layer in row.owns) else "memory"
