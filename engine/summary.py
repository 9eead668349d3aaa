"""``run.json``: what a run did, computed from its statistics and its tile log."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.contract.sensors import Provenance, Scenario
from engine.journal import Statistics
from engine.request import Plan
from engine.tile_log import STAGES, TileRow

_NOTHING = len(Scenario)
"""Stands for "no scenario" among the indices of scenarios."""


class TileTimes:
    """The columns of a tile log that the summary needs, as arrays of one entry per tile."""

    def __init__(self, rows: Iterable[TileRow]) -> None:
        order = list(Scenario)
        stages, flags = [], []
        for row in rows:
            stages.append((*row.stages_ms.values(), row.latency_ms))
            scenario = _NOTHING if row.scenario is None else order.index(row.scenario)
            flags.append((scenario, row.skipped, row.switched, row.lost))
        times = np.array(stages, np.float64).reshape(-1, len(STAGES) + 1)
        marks = np.array(flags, np.int64).reshape(-1, 4)
        self.stages_ms = dict(zip(STAGES, times.T, strict=False))
        self.latency_ms = times[:, -1]
        self.scenario = marks[:, 0]
        self.skipped, self.switched, self.lost = (marks[:, 1:] == 1).T

    def __len__(self) -> int:
        return len(self.latency_ms)

    def latencies(self) -> dict[str, Any]:
        """Percentiles over tiles that were not dropped: all, by the scenario of most pixels, and where it switched."""
        mapped = ~self.skipped
        return {
            **_percentiles(self.latency_ms[mapped]),
            "by_scenario": {
                name: _percentiles(self.latency_ms[mapped & (self.scenario == index)])
                for index, name in enumerate((*(scenario.value for scenario in Scenario), "none"))
            },
            "switches": _percentiles(self.latency_ms[mapped & self.switched]),
        }

    def misses(self, deadline_ms: float) -> int:
        """Tiles that were mapped later than that."""
        return int((self.latency_ms[~self.skipped] > deadline_ms).sum())


def _percentiles(values_ms: NDArray[np.float64]) -> dict[str, float | int]:
    if not len(values_ms):
        return {"tiles": 0}
    cuts = {f"p{q}": round(float(np.percentile(values_ms, q)), 3) for q in (50, 90, 95, 99)}
    return {"tiles": len(values_ms), **cuts, "max": round(float(values_ms.max()), 3)}


def result(plan: Plan, statistics: Statistics) -> dict[str, Any]:
    """What is in the maps."""
    return {
        "inferences": {scenario.value: count for scenario, count in statistics.inferences.items()},
        "provenance_pixels": {source.name.lower(): statistics.provenance_pixels[source] for source in Provenance},
        "class_pixels": {
            spec.name: statistics.class_pixels[index] for index, spec in enumerate(plan.bundle.manifest.classes)
        },
        "switch_count": statistics.switch_count,
        "switches": msgspec.to_builtins(statistics.switches),
    }


def performance(plan: Plan, times: TileTimes, *, first: int, streamed_s: float, total_s: float) -> dict[str, Any]:
    """Timings of this process; a resumed run counts its own tiles only, those from ``first`` on."""
    tiles = len(times) - first
    share = tiles / len(plan.mosaic.grid)
    megapixels = share * plan.rasters.grid.width * plan.rasters.grid.height / 1e6
    return {
        "tiles": tiles,
        "stream_s": round(streamed_s, 4),
        "publish_s": round(total_s - streamed_s, 4),
        "tiles_per_s": round(tiles / streamed_s, 3),
        "mpx_per_s": round(megapixels / total_s, 3),
        "stages_ms": {
            stage: {f"p{q}": round(float(np.percentile(values[first:], q)), 3) for q in (50, 90, 99)} if tiles else {}
            for stage, values in times.stages_ms.items()
        },
        "peak_rss_mib": round(peak_rss_mib(), 1),
    }


def peak_rss_mib() -> float:
    """The most memory that this process has had resident.

    Linux' ``ru_maxrss`` begins with that of the process that started this one (setmax_mm_hiwater_rss in fs/exec.c),
    so that a small command started by a large program would seem large; ``VmHWM`` is this process's own.
    """
    try:
        _, found, rest = Path("/proc/self/status").read_text().partition("VmHWM:")
    except OSError:
        found, rest = "", ""
    if found:
        return int(rest.split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 2**20)


def system() -> dict[str, Any]:
    """Where it ran."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
