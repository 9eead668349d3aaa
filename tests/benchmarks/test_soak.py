"""What the soak benchmark makes of its samples."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from scipy.stats import theilslopes

from benchmarks.soak import ProcessSample, look, slope, tabulate
from engine.contract.sensors import Scenario
from engine.grid import Window
from engine.tile_log import STAGES, TileRow


def row(tile: int, latency_ms: float, *, switched: bool = False, skipped: bool = False) -> TileRow:
    return TileRow(
        tile=tile,
        frame="",
        target=Window(row=0, col=0, height=1, width=1),
        scenario=Scenario.FULL,
        skipped=skipped,
        switched=switched,
        verdicts={},
        stages_ms=dict.fromkeys(STAGES, 0.0),
        latency_ms=latency_ms,
    )


def test_the_slope_is_theils_and_sens_and_shrugs_off_a_jump() -> None:
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 1, 300))
    y = 3 * x + rng.normal(0, 0.1, 300)
    y[40:60] += 50
    assert slope(x, y) == pytest.approx(theilslopes(y, x).slope)
    assert slope(x, y) == pytest.approx(3, abs=0.2)
    assert math.isnan(slope(x[:1], y[:1]))


def test_minutes_are_told_apart_and_warm_up_and_end_are_left_out_of_the_slopes() -> None:
    rate_hz = 2.0
    rows = [row(tile, 100.0 + (tile >= 120), switched=tile == 130, skipped=tile == 7) for tile in range(361)]
    # memory grows while warming up, then by 36 MiB/h, and leaps when maps are published
    samples = [
        ProcessSample(
            at_s=second,
            rss_mib=400 + 36 * second / 3600 + (0 if second > 45 else second) + 900 * (second > 181),
            descriptors=17,
            threads=9,
        )
        for second in range(200)
    ]
    *minutes, whole = tabulate(samples, rows, rate_hz)
    assert [each["minute"] for each in minutes] == [0, 1, 2]
    assert [each["tiles"] for each in minutes] == [120, 120, 121]
    assert [each["p50_ms"] for each in minutes] == [100, 101, 101]
    assert [each["switches"] for each in minutes] == [0, 1, 0]
    assert [each["lost"] for each in minutes] == [1, 0, 0]
    assert (whole["rss_slope_mib_per_h"], whole["descriptor_slope_per_h"]) == (pytest.approx(36, abs=0.1), 0)
    assert whole["rss_max_mib"] < 500


def test_a_process_is_looked_at_and_one_that_has_ended_is_not() -> None:
    sample = look(os.getpid(), 1.5)
    assert sample is not None
    assert sample.rss_mib > 10
    assert sample.descriptors >= 3
    assert sample.threads >= 1
    assert look(2**22 + 1, 0.0) is None  # beyond the kernel's largest process number
