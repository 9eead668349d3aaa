"""When a run counts as alive."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from engine.backends.base import BackendInfo
from engine.contract.sensors import Scenario, Sensor
from engine.grid import TileGrid
from engine.health.monitor import Fault, State, Verdict
from engine.job import TileReport
from engine.plan import Plan
from engine.telemetry.status import Phase, RunStatus

BACKEND = BackendInfo(name="openvino", library="openvino 1", device="CPU", precision="f32", threads=2, slots=2)
PLAN = cast(
    Plan, SimpleNamespace(tiles=None, bundle=SimpleNamespace(manifest=SimpleNamespace(name="toy"), digest="0" * 64))
)
"""All that is looked at by who watches a run over a landing folder."""
TILES = list(TileGrid(height=512, width=512, tile_px=64, halo_px=8).tiles())
ALIVE = Verdict(state=State.ALIVE)
FROZEN = Verdict(state=State.DEAD, fault=Fault.FROZEN, detail="the bytes of the tile before")


def tile_report(index: int = 0, *scenarios: Scenario, **different: object) -> TileReport:
    """A tile that took 0.15 s, mapped from both sensors unless ``scenarios`` says otherwise."""
    values = {
        "frame": "",
        "tile": TILES[index % len(TILES)],
        "scenarios": scenarios or (Scenario.FULL,),
        "verdicts": {Sensor.RGIR: ALIVE, Sensor.NDSM: ALIVE},
        "skipped": False,
        "switched": False,
        "available_at": 0.0,
        "wait_s": 0.01,
        "read_s": 0.02,
        "queue_s": 0.03,
        "infer_s": 0.08,
        "write_s": 0.01,
        "latency_s": 0.15,
        "queue_depth": 2,
    }
    return TileReport(**(values | different))


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_silence_is_counted_from_the_last_tile(clock) -> None:
    status = RunStatus(clock)
    clock.now += 5
    assert status.silent_s() == 5, "a start that hangs is silence too"
    status.started(PLAN, BACKEND, first_tile=0)
    clock.now += 2
    assert status.silent_s() == 2
    status.tile_done(tile_report())
    assert status.silent_s() == 0
    clock.now += 3
    assert status.silent_s() == 3


def test_a_source_that_waits_for_the_world_is_not_silence(clock) -> None:
    status = RunStatus(clock)
    status.started(PLAN, BACKEND, first_tile=0)
    status.waiting(True)
    clock.now += 3600
    assert status.silent_s() == 0
    status.waiting(False)
    assert status.silent_s() == 0, "the tile that just came cannot be an hour late"
    clock.now += 1
    assert status.silent_s() == 1


def test_nothing_is_due_while_publishing_and_after_the_end(clock) -> None:
    status = RunStatus(clock)
    status.started(PLAN, BACKEND, first_tile=0)
    for end in (status.publishing, status.succeeded, lambda: status.failed("disk full")):
        end()
        clock.now += 1000
        assert status.silent_s() == 0
    assert status.phase is Phase.FAILED
    assert status.describe() == "failed: disk full"


def test_the_line_for_people_names_what_is_wrong(clock) -> None:
    status = RunStatus(clock)
    assert status.describe() == "starting"
    status.started(PLAN, BACKEND, first_tile=0)
    clock.now += 1
    status.tile_done(tile_report())
    status.tile_done(tile_report(1, Scenario.MISSING_NDSM, verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: FROZEN}))
    status.tile_done(tile_report(2, Scenario.MISSING_NDSM, verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: FROZEN}))
    assert status.describe() == "3 tiles, missing_ndsm, ndsm dead (frozen)"
    status.waiting(True)
    assert status.describe().endswith(", waiting for the next frame")
