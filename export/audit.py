"""Show which arithmetic each engine of a bundle does: by type, layer by layer, and what was left out of int8 or fp16.

Examples:
    python -m export.audit --bundle engine/demo/bundle                         a line for each graph
    python -m export.audit --bundle engine/demo/bundle --precision int8 --layers
    python -m export.audit --bundle engine/demo/bundle --json audit.json
    python -m export.audit --bundle engine/demo/bundle --engines               ask the device what became of it
    python -m export.audit --bundle engine/demo/bundle --traffic               what the built plans write, as a table

Shares are of the multiply-accumulates (MAC) of the network as TensorRT parses it, so no GPU is needed. A convolution or
matrix product counts as int8 only where both its operands are quantised. "fell back" counts those in a wider type than
the engine is named after; "casts" counts conversions at run time, each of which may cost a pass over memory. "engine"
is what the library made of it, by its own list of layers: kernels, what they write for one tile, and the type that each
of the network's products is computed in. The list comes from the log of `python -m export.build`; with --engines from
TensorRT's inspector, which needs the device.

Exit codes: 0 every engine is what it is called; 2 wrong options; 5 the bundle, or an engine below its share; 6 the
library or its device.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.contract.bundle import Bundle, Precision
from engine.contract.command import command_parser
from engine.contract.errors import BundleError, EngineError
from engine.contract.plan_cache import default_cache, find_plan, stored_plans, usable_plans
from engine.contract.plans import EngineAudit, PlanAudit, PlanHost, measured_on, refusal
from engine.contract.sensors import Scenario
from export.arithmetic import Product, audit, computes, products, share_within
from export.built_layers import audit_engine
from export.cuda_device import current_device
from export.engine_options import PRECISIONS, add_shared, min_shares, wanted_precisions
from export.trt_library import open_library
from export.trt_network import NetworkLayer

TYPES = ("fp32", "fp16", "bf16", "int8")
"""Columns of the table; another type appears in the JSON alone."""


@dataclass(frozen=True, kw_only=True)
class LayerLine:
    """One layer of a graph, for the JSON and for ``--layers``."""

    name: str
    kind: str
    type: str
    """What it is computed in."""
    macs: int
    remark: str


@dataclass(frozen=True, kw_only=True)
class GraphAudit:
    """What one graph was found to be."""

    scenario: Scenario
    precision: Precision
    share: float
    """Of the multiply-accumulates, in the precision or narrower."""
    min_share: float
    counts: PlanAudit
    layers: tuple[LayerLine, ...]
    engine: EngineAudit | None = None
    """Of the built plan; None where there is none, or its library did not tell."""
    latency_ms: float | None = None
    latency_device: str | None = None
    """And its power mode."""


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = command_parser("export.audit", __doc__)
    add_shared(options)
    options.add_argument("--layers", action="store_true", help="every layer, not only totals")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all of it to a file")
    options.add_argument("--engines", action="store_true", help="inspect the built plans on the device")
    options.add_argument("--traffic", action="store_true", help="a table of what the built plans write, and no more")
    return options


def audit_bundle(options: argparse.Namespace) -> list[GraphAudit]:
    """Audit what the command line names.

    Raises:
        EngineError: it cannot be done.
    """
    bundle = Bundle.load(options.bundle)
    library = open_library(options.library)
    shares = min_shares(options)
    device = current_device() if options.engines else None
    host = PlanHost(library=library.name, library_version=library.version, device=device)
    plans = usable_plans(bundle, host, cache=options.cache)
    found = []
    for scenario in Scenario:
        for precision in wanted_precisions(options, bundle, scenario):
            layers = tuple(library.parse(bundle.graph(scenario, precision)).layers())
            counts = audit(layers, precision)
            plan = plans.get(scenario, {}).get(precision)
            engine = plan.record.audit.engine if plan else None
            if options.engines:
                plan = find_plan(bundle, scenario, precision, host, cache=options.cache)
                engine = audit_engine(library.inspect(plan.read()), products(layers), precision)
            found.append(
                GraphAudit(
                    scenario=scenario,
                    precision=precision,
                    share=share_within(counts, precision),
                    min_share=shares[precision],
                    counts=counts,
                    layers=layer_lines(layers),
                    engine=engine,
                    latency_ms=plan.record.latency_ms if plan else None,
                    latency_device=measured_on(plan.record) if plan and plan.record.latency_ms is not None else None,
                )
            )
    return found


def layer_lines(layers: Sequence[NetworkLayer]) -> tuple[LayerLine, ...]:
    """Every layer that yields numbers of the network."""
    found: dict[str, Product] = {product.layer.name: product for product in products(layers)}
    return tuple(
        LayerLine(
            name=layer.name,
            kind=layer.kind,
            type=found[layer.name].type if layer.name in found else layer.outputs[0].dtype,
            macs=layer.macs,
            remark=found[layer.name].remark if layer.name in found else "",
        )
        for layer in layers
        if computes(layer)
    )


def table(audits: Sequence[GraphAudit]) -> str:
    """A line for each graph, and one for each engine."""
    lines = [
        f"{'scenario':<13} {'engine':<6} {'GMAC':>6} "
        + " ".join(f"{type_:>6}" for type_ in TYPES)
        + f" {'fell back':>10} {'layers':>7} {'casts':>6} {'weights':>9}"
    ]
    for found in audits:
        counts = found.counts
        lines.append(
            f"{found.scenario:<13} {found.precision:<6} {counts.macs / 1e9:6.2f} "
            + " ".join(f"{counts.mac_share.get(type_, 0):6.1%}" for type_ in TYPES)
            + f" {len(counts.fallbacks):10} {counts.layers:7} {counts.casts:6} {counts.weights_bytes / 1e6:6.2f} MB"
        )
        if found.engine is not None:
            types = ", ".join(f"{share:.1%} {type_}" for type_, share in found.engine.mac_share.items())
            widened = f", {found.engine.widened} int8 layers hand on floating point" if found.engine.widened else ""
            lines.append(
                f"  engine: {types}; {found.engine.kernels} kernels write {found.engine.bytes_written / 1e6:.1f} MB"
                f"{widened}"
            )
        if found.latency_ms is not None:
            lines.append(f"  measured: {found.latency_ms:.2f} ms a tile on {found.latency_device}")
    return "\n".join(lines)


def slower(audits: Sequence[GraphAudit]) -> list[str]:
    """A sentence for each int8 engine that was measured to be slower than its fp16 sibling on the same device."""
    by_name = {(found.scenario, found.precision): found for found in audits}
    sentences = []
    for (scenario, precision), int8 in by_name.items():
        fp16 = by_name.get((scenario, "fp16"))
        if precision != "int8" or fp16 is None or int8.latency_device != fp16.latency_device:
            continue
        if int8.latency_ms is not None and fp16.latency_ms is not None and int8.latency_ms > fp16.latency_ms:
            sentences.append(
                f"{scenario}: int8 is slower than fp16 on {int8.latency_device} ({int8.latency_ms:.2f} ms, "
                f"{fp16.latency_ms:.2f} ms) and does not run by default"
            )
    return sentences


def layer_table(found: GraphAudit) -> str:
    """Every layer of one graph."""
    lines = [f"{found.scenario} {found.precision}"]
    for layer in found.layers:
        share = f"{layer.macs / found.counts.macs:6.2%} MAC" if layer.macs else ""
        lines.append(f"  {layer.type:<5} {layer.kind:<16} {share:<11} {layer.name}  {layer.remark}".rstrip())
    return "\n".join(lines)


def traffic(options: argparse.Namespace) -> str:
    """What each kernel of each plan hands to the next through memory, for one tile, as a Markdown table.

    Raises:
        BundleError: there is no plan of these graphs whose library told.
        EngineError: the bundle or a record cannot be read.
    """
    bundle, cache = Bundle.load(options.bundle), options.cache
    lines = [
        "| engine | outputs | kernels | written | fp32 | fp16 | int8 | int8 layers that hand on floating point |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = [plan.record for plan in stored_plans(cache or default_cache(bundle))]
    asked = {scenario: wanted_precisions(options, bundle, scenario) for scenario in Scenario}
    for record in sorted(
        found, key=lambda r: (list(Scenario).index(r.key.scenario), PRECISIONS.index(r.key.precision), r.created_utc)
    ):
        key, engine = record.key, record.audit.engine
        here = PlanHost(library=key.library, library_version=key.library_version, device=None)
        if engine is None or key.precision not in asked[key.scenario] or refusal(record, bundle, here):
            continue
        megabytes = [engine.written.get(type_, 0) / 1e6 for type_ in ("fp32", "fp16", "int8")]
        lines.append(
            f"| {key.scenario} {key.precision} | {'all' if key.probabilities else 'classes, confidence'} "
            f"| {engine.kernels} | {engine.bytes_written / 1e6:.1f} MB | "
            + " | ".join(f"{size:.1f}" for size in megabytes)
            + f" | {engine.widened} |"
        )
    if len(lines) == 2:
        raise BundleError(
            f"no plan in {cache or default_cache(bundle)} is of {bundle.root}: run `python -m export.build`"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        if options.traffic:
            print(traffic(options), flush=True)
            return 0
        audits = audit_bundle(options)
        if options.layers:
            for found in audits:
                print(layer_table(found), end="\n\n")
        print("\n".join((table(audits), *slower(audits))), flush=True)
        if options.json:
            options.json.write_bytes(msgspec.json.format(msgspec.json.encode(audits), indent=2) + b"\n")
        below = [found for found in audits if found.share < found.min_share]
        for found in below:
            print(f"{found.scenario} {found.precision}: {found.share:.1%}, at least {found.min_share:.0%} is asked")
        if below:
            raise BundleError(f"{len(below)} of {len(audits)} engines are not what they are called")
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # hundreds of lines, which one pipes into head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
    return 0


if __name__ == "__main__":
    sys.exit(main())
