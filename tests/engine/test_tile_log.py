"""``tiles.csv``: what goes in comes out, and a resumed run cuts it where the journal says."""

from __future__ import annotations

import csv

import msgspec
import numpy as np
import pytest

from engine.contract.errors import OutputError, ResumeError
from engine.contract.sensors import Scenario, Sensor
from engine.grid import TileGrid
from engine.health.monitor import Fault, State, Verdict
from engine.job import TileReport
from engine.record import TileTimes
from engine.tile_log import COLUMNS, TileLog, read_tile_log

TILES = list(TileGrid(height=200, width=300, tile_px=64, halo_px=8).tiles())
ALIVE = Verdict(state=State.ALIVE)
FROZEN = Verdict(state=State.DEAD, fault=Fault.FROZEN, detail="the same bytes as the tile before")
EMPTY = Verdict(state=State.DEAD, fault=Fault.NO_DATA, detail="no data")


def report(index: int, **changes) -> TileReport:
    plain = {
        "frame": "",
        "tile": TILES[index],
        "scenarios": (Scenario.FULL,),
        "verdicts": {Sensor.RGIR: ALIVE, Sensor.NDSM: ALIVE},
        "skipped": False,
        "switched": False,
        "available_at": 100.0 + index,
        "wait_s": 0.001,
        "read_s": 0.002,
        "queue_s": 0.003,
        "infer_s": 0.004 * (index + 1),
        "write_s": 0.005,
        "latency_s": 0.011 + 0.004 * (index + 1),
        "queue_depth": 2,
    }
    return TileReport(**{**plain, **changes})


REPORTS = [
    report(0),
    report(1, verdicts={Sensor.RGIR: ALIVE, Sensor.NDSM: FROZEN}, scenarios=(Scenario.MISSING_NDSM,), switched=True),
    report(2, verdicts={Sensor.RGIR: FROZEN, Sensor.NDSM: EMPTY}, scenarios=()),
    report(3, verdicts={Sensor.RGIR: EMPTY, Sensor.NDSM: EMPTY}, scenarios=()),
    report(4, skipped=True, scenarios=()),
    report(5, verdicts={}, scenarios=(Scenario.MISSING_NDSM, Scenario.FULL), frame="0017"),
]


def write(path, reports=REPORTS) -> None:
    with TileLog(path) as log:
        for each in reports:
            log.append(each)


def test_rows_read_back_as_they_were_reported(tmp_path) -> None:
    write(tmp_path / "tiles.csv")
    rows = list(read_tile_log(tmp_path / "tiles.csv"))
    for row, each in zip(rows, REPORTS, strict=True):
        assert (row.tile, row.frame, row.target) == (each.tile.index, each.frame, each.tile.target)
        assert row.scenario == (each.scenarios[0] if each.scenarios else None)
        assert (row.skipped, row.switched) == (each.skipped, each.switched)
        assert {s: (v.state, v.fault) for s, v in row.verdicts.items()} == {
            s: (v.state, v.fault) for s, v in each.verdicts.items()
        }
        assert row.stages_ms["infer"] == pytest.approx(each.infer_s * 1e3, abs=1e-3)
        assert row.latency_ms == pytest.approx(each.latency_s * 1e3, abs=1e-3)
    with (tmp_path / "tiles.csv").open(newline="") as file:
        assert [len(line) for line in csv.reader(file)] == [len(COLUMNS)] * (len(REPORTS) + 1)


def test_a_tile_is_lost_when_it_was_skipped_or_every_sensor_failed(tmp_path) -> None:
    write(tmp_path / "tiles.csv")
    lost = [row.tile for row in read_tile_log(tmp_path / "tiles.csv") if row.lost]
    assert lost == [2, 4], "tile 3 is no loss: no raster has data there"


def test_latencies_are_numpy_percentiles_of_the_tiles_that_were_mapped(tmp_path) -> None:
    write(tmp_path / "tiles.csv")
    times = TileTimes(read_tile_log(tmp_path / "tiles.csv"))
    expected_ms = [15.0, 19.0, 23.0, 27.0, 35.0]  # all but the skipped one
    told = msgspec.to_builtins(times.latencies())
    assert told["tiles"] == 5
    for q in (50, 90, 95, 99):
        assert told[f"p{q}"] == pytest.approx(np.percentile(expected_ms, q), abs=1e-3)
    assert told["max"] == 35.0
    assert told["by_scenario"]["full"] == {"tiles": 1, **dict.fromkeys(("p50", "p90", "p95", "p99", "max"), 15.0)}
    assert told["by_scenario"]["missing_rgir"] == {"tiles": 0}
    assert told["by_scenario"]["none"]["tiles"] == 2
    assert told["switches"]["p50"] == 19.0
    assert times.deadline(25.0).misses == 2
    assert times.deadline(35.0).misses == 0


@pytest.mark.parametrize("keep", [0, 2, 6])
def test_a_resumed_log_goes_on_behind_the_rows_it_keeps(keep, tmp_path) -> None:
    path = tmp_path / "tiles.csv"
    write(path)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"6,,48,2")  # a row that a killed process did not finish
    with TileLog(path, keep=keep) as log:
        for each in REPORTS[keep:]:
            log.append(each)
    assert path.read_bytes() == whole


def test_a_log_with_fewer_rows_than_the_journal_counts_is_refused(tmp_path) -> None:
    path = tmp_path / "tiles.csv"
    write(path)
    with pytest.raises(ResumeError, match="has 6 rows, the journal counts 7"):
        TileLog(path, keep=7)
    path.unlink()
    with pytest.raises(ResumeError, match="lacks"):
        TileLog(path, keep=0)


def test_a_log_that_cannot_be_written_says_so(tmp_path) -> None:
    with pytest.raises(OutputError, match="no/tiles.csv cannot be written"):
        TileLog(tmp_path / "no" / "tiles.csv")


def test_another_file_is_not_taken_for_a_tile_log(tmp_path) -> None:
    (tmp_path / "tiles.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must begin with the columns tile, frame"):
        list(read_tile_log(tmp_path / "tiles.csv"))
