"""Build the TensorRT plans of a bundle: ONNX graph to device engine, for each scenario and precision.

Examples:
    python -m export.build --bundle engine/demo/bundle                             every graph of the bundle
    python -m export.build --bundle engine/demo/bundle --precision fp16,int8       some of them
    python -m export.build --bundle engine/demo/bundle --list                      what is there, and what may be loaded
    python -m export.build --bundle engine/demo/bundle --target 86,89 --library tensorrt_rtx
    python -m export.build --bundle engine/demo/bundle --no-probabilities          for `engine.run --blend none` alone

Plans go to DIR/plans, or to --cache. One that was built from the same graph by the same library for the same devices
with the same options is up to date and is left alone; any other is built anew. TensorRT 10 and 11 (JetPack 6 and 7)
build on the device they build for. TensorRT-RTX also builds on a machine without a GPU.

Before anything is built the parsed network is audited: a graph that is called int8 but computes in floating point is
refused (`python -m export.audit` shows it layer by layer). So is an engine that the library made otherwise than it was
asked, by the library's own list of its layers. Neither torch nor onnx is needed.

Exit codes: 0 done; 1 internal error; 2 wrong options; 4 the cache folder; 5 the bundle, or a graph that is not what it
is called; 6 the library or its device; 130 interrupted (finished plans stay; repeat the command to go on).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.contract.bundle import Bundle, Precision
from engine.contract.command import command_parser
from engine.contract.errors import BackendUnavailableError, EngineError, IntegrityError
from engine.contract.plan_cache import (
    StoredPlan,
    choose,
    default_cache,
    load_hint,
    load_plan,
    save_hint,
    save_plan,
    stored_plans,
    usable_plans,
)
from engine.contract.plans import EngineAudit, PlanHost, PlanKey, measured_on, refusal, source_sha256
from engine.contract.sensors import Scenario
from export.arithmetic import audit, products, require_share, share_within
from export.built_layers import audit_engine, require_built
from export.cuda_device import current_device
from export.engine_options import (
    add_engine,
    add_shared,
    batch_of,
    min_shares,
    target_of,
    wanted_precisions,
    workspace_of,
)
from export.progress import PhaseBar, Stop
from export.trt_library import TrtLibrary, open_library

log = logging.getLogger(__name__)

USABLE = "usable"


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = command_parser("export.build", __doc__)
    add_shared(options)
    options.add_argument("--force", action="store_true", help="build also what is up to date")
    options.add_argument("--list", action="store_true", help="say what is in the cache and whether it may be loaded")
    add_engine(options)
    return options


@dataclass(frozen=True, kw_only=True)
class PlanJob:
    """One plan to have."""

    graph: Path
    key: PlanKey
    min_share: float


def jobs(options: argparse.Namespace, bundle: Bundle, library: TrtLibrary) -> list[PlanJob]:
    """What the command line asks for, scenario by scenario.

    Raises:
        UsageError: options that make no sense.
        ManifestError: the bundle lacks a graph.
        BackendUnavailableError: a device is needed and there is none.
    """
    target, batch = target_of(options.target, library), batch_of(options.batch)
    workspace_mib, shares = workspace_of(options.workspace), min_shares(options)
    return [
        PlanJob(
            graph=bundle.graph(scenario, precision),
            key=PlanKey(
                scenario=scenario,
                precision=precision,
                source_sha256=source_sha256(bundle, scenario, precision),
                library=library.name,
                library_version=library.version,
                target=target,
                batch=batch,
                workspace_mib=workspace_mib,
                probabilities=options.probabilities,
            ),
            min_share=shares[precision],
        )
        for scenario in Scenario
        for precision in wanted_precisions(options, bundle, scenario)
    ]


def have_plan(job: PlanJob, library: TrtLibrary, cache: Path, *, force: bool, stop: Stop) -> tuple[StoredPlan, bool]:
    """The job's plan out of the cache, or built into it; and whether it was built.

    Raises:
        BundleError: the graph is not of the precision it is called.
        BackendError: the engine is not, though its graph is; nothing was written.
        EngineError: it cannot be built or written.
    """
    found = None if force else _up_to_date(job.key, cache)
    if found is not None:
        require_share(found.record.audit, job.key, job.min_share)
        require_built(found.record.audit, job.key, job.min_share)
        return found, False
    network = library.parse(job.graph, probabilities=job.key.probabilities)
    layers = tuple(network.layers())
    audited = audit(layers, job.key.precision)
    require_share(audited, job.key, job.min_share)
    timing_cache = cache / f"timing-{library.version}.cache"
    known = load_hint(timing_cache, "every kernel is timed again") if library.has_timing_cache else b""
    start = time.perf_counter()
    with PhaseBar(f"{job.key.scenario} {job.key.precision}", stop) as bar:
        built = library.build(network, job.key, progress=bar, timing_cache=known)
    build_s = round(time.perf_counter() - start, 2)
    if built.layers:
        audited = replace(audited, engine=audit_engine(built.layers, products(layers), job.key.precision))
        require_built(audited, job.key, job.min_share)
    else:
        log.warning(
            "%s %s did not list the layers of %s: ask `python -m export.audit --engines` what it computes in",
            library.name,
            library.version,
            job.key.stem,
        )
    stored = save_plan(cache, job.key, built.plan, audit=audited, build_s=build_s)
    if built.timing_cache:
        save_hint(timing_cache, built.timing_cache, "the next build takes as long")
    return stored, True


def build(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: it cannot be done; plans that were finished stay.
    """
    bundle = Bundle.load(options.bundle)
    cache = options.cache or default_cache(bundle)
    if options.list:
        _say(listing(bundle, cache, options.library))
        return
    library = open_library(options.library)
    todo = jobs(options, bundle, library)
    with Stop().on_signals() as stop:
        _say(f"{library.name} {library.version}, for {todo[0].key.target}, batch {todo[0].key.batch}, plans in {cache}")
        plans = []
        for job in todo:
            stop.check()
            plan, was_built = have_plan(job, library, cache, force=options.force, stop=stop)
            plans.append(plan)
            _say(_line(plan, f"built in {plan.record.build_s:.1f} s" if was_built else "up to date"))
        for sentence in heavier(plans):
            log.warning("%s", sentence)


def heavier(plans: Sequence[StoredPlan]) -> list[str]:
    """A sentence for each int8 engine that hands more through memory than its fp16 sibling of the same build.

    Its arithmetic is a small part of such a network's time; what it writes, another kernel has to read.
    """

    def engine(key: PlanKey, precision: Precision) -> EngineAudit | None:
        found = (plan.record for plan in plans if plan.record.key.precision == precision)
        siblings = (record for record in found if replace(record.key, source_sha256="", precision="fp32") == key)
        return next((record.audit.engine for record in siblings), None)

    keys = {replace(plan.record.key, source_sha256="", precision="fp32"): None for plan in plans}
    sentences = []
    for key in keys:
        int8, fp16 = engine(key, "int8"), engine(key, "fp16")
        if int8 is not None and fp16 is not None and int8.bytes_written > fp16.bytes_written:
            sentences.append(
                f"{key.scenario}: the int8 engine writes {int8.bytes_written / 1e6:.1f} MB a tile in {int8.kernels} "
                f"kernels ({int8.widened} of its int8 layers hand on floating point), the fp16 engine "
                f"{fp16.bytes_written / 1e6:.1f} MB in {fp16.kernels}: expect fp16 to be faster; int8 runs by default "
                "only where `python -m benchmarks.latency --backends tensorrt --record` measured it to be"
            )
    return sentences


def listing(bundle: Bundle, cache: Path, library: str) -> str:
    """Every plan of a cache with what it is, whether this machine may load it, and which one runs by default."""
    host = _host(library)
    usable = usable_plans(bundle, host, cache=cache) if host is not None else {}
    lines = []
    for plan in stored_plans(cache):
        record = plan.record
        state = _state(plan, bundle, host)
        if state == USABLE and usable[record.key.scenario][record.key.precision] != plan:
            state = "usable, but a newer one is taken"
        lines.append(_line(plan, state))
        details = (
            f"{record.key.library} {record.key.library_version}, for {record.key.target}, batch {record.key.batch}, "
            f"with{'' if record.key.probabilities else 'out'} probabilities"
        )
        if record.latency_ms is not None:
            details += f", {record.latency_ms:.2f} ms on {measured_on(record)}"
        lines.append(f"    {plan.path.name}: {details}, {record.created_utc[:19]}")
    if host is not None and host.device is not None:
        for scenario, by_precision in usable.items():
            lines.append(f"default for {scenario}: {choose(by_precision.values(), host.device)[1]}")
    return "\n".join(lines) or f"no plans in {cache}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        build(options)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _up_to_date(key: PlanKey, cache: Path) -> StoredPlan | None:
    try:
        plan = load_plan(cache, key)
        if plan is not None:
            plan.read()
    except IntegrityError as error:
        log.warning("building again: %s", error)
        return None
    return plan


def _state(plan: StoredPlan, bundle: Bundle, host: PlanHost | None) -> str:
    try:
        plan.read()
    except IntegrityError as error:
        return f"damaged: {error}"
    if host is None:
        return "no TensorRT library here to load it"
    why = refusal(plan.record, bundle, host)
    return USABLE if why is None else f"refused: it {why}"


def _host(library: str) -> PlanHost | None:
    try:
        opened = open_library(library)
    except BackendUnavailableError:
        return None
    try:
        device = current_device()
    except BackendUnavailableError:
        device = None
    return PlanHost(library=opened.name, library_version=opened.version, device=device)


def _line(plan: StoredPlan, state: str) -> str:
    key, audited = plan.record.key, plan.record.audit
    share = share_within(audited, key.precision)
    size = plan.record.plan.size_bytes / 1e6
    engine = audited.engine
    written = f"{engine.kernels:3} kernels write {engine.bytes_written / 1e6:5.1f} MB  " if engine is not None else ""
    return (
        f"{key.scenario:<13} {key.precision}  {size:6.2f} MB  {share:6.1%} of {audited.macs / 1e9:.2f} GMAC "
        f"in {key.precision}  {written}{state}"
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
