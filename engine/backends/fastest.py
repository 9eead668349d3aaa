"""Which of a bundle's graphs is the fastest on this machine: measured once, remembered, and what ``auto`` then runs.

A bundle holds an int8 graph only where calibration kept it within the accuracy budget that was set
(:mod:`calib.run`), so that speed alone decides, once the golden tiles have been reproduced. int8 has to be faster by
:data:`WORTH_IT`: a difference that noise can make must not change a map from one machine's first run to another's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, get_args

from engine.backends import instruction_sets
from engine.backends.base import Backend, Output, PerformanceHint
from engine.backends.options import BackendOptions
from engine.backends.remembered import Remembered
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)

KIND = "fastest"
WORTH_IT = 0.9
"""Of the fp32 graph's time."""
MEASURED_S = 0.4
"""Per graph and round, after the golden tiles have warmed it."""
ROUNDS = 2


def conditions(bundle: Bundle, threads: int | None, hint: PerformanceHint) -> dict[str, Any]:
    """What a graph's preparation and speed depend on, beside the library and the graph itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "bundle": bundle.digest,
        "openvino": version("openvino"),
        "instructions": instruction_sets.in_use() or instruction_sets.told(),
        "cores": cores,
        "threads": threads,
        "hint": hint,
    }


def fastest(
    remembered: Remembered | None, bundle: Bundle, threads: int | None, hint: PerformanceHint
) -> Precision | None:
    """The graph that was the fastest when it was measured here; None where it was not."""
    found = measured(remembered, bundle, threads, hint)
    return chosen_of(found) if found else None


def measured(
    remembered: Remembered | None, bundle: Bundle, threads: int | None, hint: PerformanceHint
) -> dict[Precision, float]:
    """Tiles a second of each graph, as they were measured here; empty where they were not."""
    found = {} if remembered is None else remembered.note(KIND, conditions(bundle, threads, hint))
    return {name: float(found[name]) for name in get_args(Precision) if isinstance(found.get(name), float)}


def told(rates: Mapping[Precision, float]) -> str:
    """What was measured, in words."""
    chosen = chosen_of(rates)
    others = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items() if name != chosen)
    return f"--precision auto is the {chosen} graph here: {rates[chosen]:.1f} tiles/s" + (
        f" ({others})" if others else ""
    )


def tiles_per_s(backend: Backend, scenario: Scenario, tile: Mapping[Any, Any], for_s: float) -> float:
    """Of one tile again and again, with every slot busy."""
    inputs = {sensor: tile[sensor.value] for sensor in scenario.sensors}
    flying = [backend.submit(scenario, inputs) for _ in range(backend.info.slots)]
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < for_s:
        flying.pop(0).result()
        flying.append(backend.submit(scenario, inputs))
        done += 1
    rate = done / (time.perf_counter() - began)
    for each in flying:
        each.result()
    return rate


def rates_of(opened: Mapping[Precision, Backend], bundle: Bundle, scenario: Scenario) -> dict[Precision, float]:
    """Tiles a second of each graph, the best of :data:`ROUNDS` rounds in turn."""
    golden = bundle.golden()
    rates: dict[Precision, float] = dict.fromkeys(opened, 0.0)
    for _ in range(ROUNDS):
        for precision, backend in opened.items():
            rates[precision] = max(rates[precision], tiles_per_s(backend, scenario, golden, MEASURED_S))
    return rates


def chosen_of(rates: Mapping[Precision, float]) -> Precision:
    """fp32 unless another graph takes at most :data:`WORTH_IT` of its time."""
    best = max(rates, key=lambda precision: rates[precision])
    return best if "fp32" not in rates or rates["fp32"] <= WORTH_IT * rates[best] else "fp32"


def candidates(bundle: Bundle, scenarios: Iterable[Scenario]) -> tuple[Precision, ...]:
    """Graphs that a processor may run; fp16 is none, for it computes in float32 there and has no other merit."""
    everywhere = set.intersection(*(set(bundle.manifest.graphs[scenario]) for scenario in scenarios))
    return tuple(each for each in ("fp32", "int8") if each in everywhere)


def learn(options: BackendOptions, bundle: Bundle, *, scenarios: Iterable[Scenario], wanted: Iterable[Output]) -> str:
    """Measure which graph is the fastest here, if ``auto`` is to know and does not yet; takes a few seconds once.

    A graph that does not reproduce the golden tiles is none to choose from. Where TensorRT may run nothing is
    measured: its plans know their own times.

    Returns:
        What ``auto`` is here, in words; empty where nothing is known.
    """
    scenarios, wanted, remembered = tuple(scenarios), tuple(wanted), Remembered.here()
    if remembered is None or options.precision != "auto" or options.name not in ("auto", "openvino"):
        return ""
    if options.name == "auto" and find_spec("pycuda") is not None:
        return ""
    rates = measured(remembered, bundle, options.threads, options.hint)
    if not rates:
        with ExitStack() as stack:
            opened: dict[Precision, Backend] = {}
            for graph in candidates(bundle, scenarios):
                asked = replace(options, name="openvino", precision="auto" if graph == "fp32" else graph)
                try:
                    opened[graph] = stack.enter_context(
                        asked.open(bundle, scenarios=scenarios, wanted=wanted, remembered=remembered)
                    )
                except BackendError as error:
                    log.info("%s is none to choose from: %s", graph, error)
            if not opened:
                return ""
            rates = rates_of(opened, bundle, scenarios[0])
        remembered.write(
            KIND, conditions(bundle, options.threads, options.hint), {str(name): rates[name] for name in rates}
        )
    return told(rates)
