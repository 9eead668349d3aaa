"""What the kill benchmark takes for equal, and what a killed run leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.rasters import Failure, write_flight
from benchmarks.stopped import compare, remains
from engine.contract.sensors import Provenance, Sensor
from engine.journal import FOLDER
from engine.rasters.map_reader import MapReader
from engine.tile_log import read_tile_log
from tests.engine.runs import Watcher, request_for, run_told


@pytest.fixture(scope="module")
def finished(toy_bundle, tmp_path_factory) -> Path:
    """A run over a flight in which nDSM shows noise in two tiles of the second row."""
    folder = tmp_path_factory.mktemp("flight")
    failure = Failure(sensor=Sensor.NDSM, tile_row=1, first_col=1, last_col=2)
    paths = write_flight(folder, toy_bundle.manifest, 12, failures=[failure])
    limits = ("ndsm.noise.soft=1", "ndsm.noise.hard=1.6")
    run_told(request_for(toy_bundle, paths, folder / "map", watch=True, health=limits), Watcher())
    return folder / "map"


def test_failures_lie_in_the_tiles_they_are_made_for(finished) -> None:
    rows = list(read_tile_log(finished / "tiles.csv"))
    assert len(rows) == 12
    noisy = [row.tile for row in rows if row.verdicts[Sensor.NDSM].fault == "noise"]
    assert noisy == [5, 6, 7, 8], "and two until it is believed again"
    with MapReader(finished) as maps:
        assert (maps.height, maps.width) == (3 * 48 + 16, 4 * 48 + 16)
    told = json.loads((finished / "run.json").read_text())["result"]["provenance_pixels"]
    assert told[Provenance.NONE.name.lower()] == 0


@pytest.mark.parametrize("name", ["classes.tif", "provenance.tif", "quicklook.png"])
def test_one_byte_makes_a_difference(finished, tmp_path, name: str) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    assert compare(finished, other) == []
    content = bytearray((other / name).read_bytes())
    content[len(content) // 2] ^= 1
    (other / name).write_bytes(content)
    assert compare(finished, other) == [f"{name} differs"]


def test_times_may_differ_and_verdicts_may_not(finished, tmp_path) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    lines = (other / "tiles.csv").read_text().splitlines()
    (other / "tiles.csv").write_text("\n".join([lines[0], lines[1].rpartition(",")[0] + ",1.0", *lines[2:]]) + "\n")
    assert compare(finished, other) == []
    (other / "tiles.csv").write_text("\n".join(lines).replace("noise", "late") + "\n")
    told = json.loads((other / "run.json").read_text())
    told["health"]["change_count"] += 1
    (other / "run.json").write_text(json.dumps(told))
    assert compare(finished, other) == ["tiles.csv differs", "health of run.json differs"]


def test_remains_are_told_apart(finished, tmp_path) -> None:
    assert remains(tmp_path / "none") == ("nothing", None)
    assert remains(finished) == ("finished", None)
    (tmp_path / FOLDER).mkdir()
    assert remains(tmp_path) == ("nothing", None)
    (tmp_path / FOLDER / "journal.json").write_text('{"tiles_done": 7}')
    assert remains(tmp_path) == ("unfinished", 7)
