"""A rate counts every tile's whole time, on a clock that only inference moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import rates
from engine.contract.sensors import Scenario

TILE_S = 0.25


class Clock:
    """Slots that take TILE_S for a tile; waiting for an answer is all that takes time."""

    def __init__(self, slots: int) -> None:
        self.info = SimpleNamespace(slots=slots)
        self.now = 0.0
        self.free = [0.0] * slots

    def submit(self, scenario, inputs):
        slot = self.free.index(min(self.free))
        done = self.free[slot] = max(self.now, self.free[slot]) + TILE_S
        return SimpleNamespace(result=lambda: self.wait(done))

    def infer(self, scenario, inputs):
        return self.submit(scenario, inputs).result()

    def wait(self, until: float) -> None:
        self.now = max(self.now, until)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("count", [4, 8])
def test_no_tile_of_an_offline_rate_is_finished_before_the_clock_starts(slots, count, monkeypatch) -> None:
    backend = Clock(slots)
    monkeypatch.setattr(rates.time, "perf_counter", lambda: backend.now)
    assert rates.offline(backend, Scenario.FULL, [{}], count) == pytest.approx(slots / TILE_S)


def test_a_lone_tile_takes_its_own_time(monkeypatch) -> None:
    backend = Clock(2)
    monkeypatch.setattr(rates.time, "perf_counter", lambda: backend.now)
    assert rates.single_stream(backend, Scenario.FULL, [{}], 3) == pytest.approx([1e3 * TILE_S] * 3)
