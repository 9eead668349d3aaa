"""When a run counts as alive."""

from __future__ import annotations

import pytest

from engine.backends.base import BackendInfo
from engine.contract.sensors import Scenario, Sensor
from engine.grid import TileGrid
from engine.health.monitor import Fault, State, Verdict
from engine.stream import TileReport
from engine.watch.vitals import Phase, Vitals

BACKEND = BackendInfo(name="openvino", library="openvino 1", device="CPU", precision="f32", threads=2, slots=2)
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
    vitals = Vitals(clock)
    clock.now += 5
    assert vitals.silent_s() == 5, "a start that hangs is silence too"
    vitals.started(None, BACKEND, first_tile=0)
    clock.now += 2
    assert vitals.silent_s() == 2
    vitals.tile_done(tile_report())
    assert vitals.silent_s() == 0
    clock.now += 3
    assert vitals.silent_s() == 3


def test_a_source_that_waits_for_the_world_is_not_silence(clock) -> None:
    vitals = Vitals(clock)
    vitals.started(None, BACKEND, first_tile=0)
    vitals.source_waits(True)
    clock.now += 3600
    assert vitals.silent_s() == 0
    vitals.source_waits(False)
    assert vitals.silent_s() == 0, "the tile that just came cannot be an hour late"
    clock.now += 1
    assert vitals.silent_s() == 1


def test_nothing_is_due_while_publishing_and_after_the_end(clock) -> None:
    vitals = Vitals(clock)
    vitals.started(None, BACKEND, first_tile=0)
    for end in (vitals.publishing, vitals.finished, lambda: vitals.failed("disk full")):
        end()
        clock.now += 1000
        assert vitals.silent_s() == 0
    assert vitals.phase is Phase.FAILED
    assert vitals.describe() == "failed: disk full"


def test_the_line_for_people_names_what_is_wrong(clock) -> None:
    vitals = Vitals(clock)
    assert vitals.describe() == "starting"
    vitals.started(None, BACKEND, first_tile=0)
    clock.now += 1
    vitals.tile_done(tile_report())
    vitals.tile_done(tile_report(1, Scenario.MISSING_NDSM, verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: FROZEN}))
    vitals.tile_done(tile_report(2, Scenario.MISSING_NDSM, verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: FROZEN}))
    assert vitals.describe() == "3 tiles, missing_ndsm, ndsm dead (frozen)"
    vitals.source_waits(True)
    assert vitals.describe().endswith(", waiting for the next frame")
