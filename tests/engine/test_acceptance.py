"""The acceptance command: what it passes, what it fails, and that its maps are those of a run."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from engine.acceptance.__main__ import FaultCase, cases, main
from engine.acceptance.rehearsal import Flight, Rehearsal
from engine.backends.options import BackendOptions
from engine.contract.bundle import NODATA_CLASS
from engine.contract.health import Limit, default_limits
from engine.contract.sensors import Provenance, Scenario, Sensor
from engine.health.faults import Kind, kinds_of, parse_faults
from engine.rasters.raster import SensorRasters
from engine.stitcher import CropStitcher
from tests.conftest import Scene, toy_map
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import Watcher, request_for, run_told
from tests.engine.test_segment import MAPS


def arguments(bundle, paths, *more: str, noise: dict[str, int]) -> list[str]:
    """``noise`` is the hard limit of each sensor; the toy bundle has none."""
    rasters = [word for sensor in Sensor for word in (f"--{sensor}", str(paths[sensor]))]
    limits = [f"{sensor}.noise.{bound}={hard}" for sensor, hard in noise.items() for bound in ("soft", "hard")]
    return ["--bundle", str(bundle.root), *rasters, *more, *(word for each in limits for word in ("--health", each))]


def rows_of(path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def rehearse(toy_bundle, tmp_path_factory):
    """A prepared rehearsal over a scene, and its flight."""
    opened = []

    def prepare(paths, tiles: int, limits=None) -> Rehearsal:
        manifest = toy_bundle.manifest
        rasters = SensorRasters.open(paths, {sensor: manifest.sensor(sensor) for sensor in Sensor}, window_px=64)
        backend = BackendOptions(name="openvino", precision="fp32").open(
            toy_bundle, scenarios=tuple(Scenario), wanted=CropStitcher.wanted
        )
        flight = Flight(rasters=rasters, tile_px=64, halo_px=8, tiles=tiles)
        rehearsal = Rehearsal(flight, backend, manifest, limits or default_limits())
        opened.extend([rehearsal, backend, rasters])
        rehearsal.prepare()
        assert rehearsal.fly(()).passed or limits is not None
        return rehearsal

    yield prepare
    for each in opened:
        each.__exit__(None, None, None)


def test_every_kind_of_fault_of_every_sensor_is_in_the_matrix_in_three_shapes() -> None:
    matrix = list(cases(np.ones(24, bool)))
    assert matrix[0] == FaultCase(name="no fault", injections=())
    flown = {(each.sensor, each.kind) for case in matrix for each in case.injections}
    assert flown == {(sensor, kind) for sensor in Sensor for kind in kinds_of(sensor)}
    alone = [case for case in matrix if len({each.sensor for each in case.injections}) == 1]
    for sensor, kind in flown:
        lengths = {
            None if each.last is None else each.last - each.first + 1
            for case in alone
            for each in case.injections
            if (each.sensor, each.kind) == (sensor, kind)
        }
        assert {1, 5, None} <= lengths, (sensor, kind)


def test_a_long_flight_has_a_fault_in_every_two_dozen_tiles_and_begins_them_where_they_can_be_seen() -> None:
    fit = np.arange(100) % 10 == 3
    matrix = {case.name: case.injections for case in cases(fit)}
    assert [each.first for each in matrix["rgir noise, single tiles"]] == [13, 33, 63, 83]
    assert all(fit[each.first] for injections in matrix.values() for each in injections)
    assert matrix["ndsm late, to the end"][0].first == 83


@pytest.mark.slow
def test_the_whole_matrix_passes_over_a_healthy_scene(toy_bundle, write_scene, tmp_path, capsys) -> None:
    table = tmp_path / "matrix.csv"
    scene = flight_scene(330, 410)
    limits = {"rgir": 20, "ndsm": 1}
    code = main(arguments(toy_bundle, write_scene(scene), "--tiles", "20", "--csv", str(table), noise=limits))
    out = capsys.readouterr().out
    assert code == 0, out
    rows = rows_of(table)
    assert {row["passed"] for row in rows.values()} == {"1"}
    assert rows["rgir noise, bursts"]["inject"] == "rgir:noise@8-12"
    assert {row["lost"] for row in rows.values()} == {row["false_alarms"] for row in rows.values()} == {"0"}
    hard = [row for row in rows.values() if row["hard"] != "0"]
    assert len(hard) > 50
    assert all(row["hard"] == row["hard_at_once"] for row in hard)
    assert all(float(row["inside_equal"]) == 1 and int(row["inside_tiles"]) > 0 for row in hard)
    assert f"{len(rows)} of {len(rows)} cases pass" in out


def test_limits_that_let_a_fault_pass_fail_the_cases_it_is_in(
    toy_bundle, write_scene, tmp_path, capsys, monkeypatch
) -> None:
    def some(fit):
        return (case for case in cases(fit) if case.name.startswith(("no fault", "rgir noise", "ndsm late", "both, o")))

    monkeypatch.setattr("engine.acceptance.__main__.cases", some)
    table = tmp_path / "matrix.csv"
    paths, blind = write_scene(flight_scene(330, 410)), {"rgir": 1000, "ndsm": 1}
    off = ["--health", "rgir.repeats=off", "--health", "rgir.colours=off"]
    blindly = ["--tiles", "18", *off, "--csv", str(table)]
    assert main(arguments(toy_bundle, paths, *blindly, noise=blind)) == 1
    assert "FAIL: 1 hard faults missed or late, 5 tiles poisoned" in capsys.readouterr().out
    rows = rows_of(table)
    failed = {name for name, row in rows.items() if row["passed"] == "0"}
    expected = {f"rgir noise, {shape}" for shape in ("single tiles", "bursts", "to the end")} | {"both, overlapping"}
    assert failed == expected < set(rows)


def test_limits_that_see_faults_everywhere_fail_a_flight_without_any(rehearse, write_scene) -> None:
    limits = default_limits()
    touchy = replace(limits[Sensor.NDSM], noise=Limit(soft=0, hard=0.001), noise_ratio=0)
    rehearsal = rehearse(write_scene(flight_scene(330, 410)), 18, {**limits, Sensor.NDSM: touchy})
    result = rehearsal.fly(())
    assert (result.passed, result.false_alarms, result.why) == (False, 18, "18 false alarms")


def test_a_flight_longer_than_the_raster_goes_on_over_its_mirror_image(rehearse, write_scene) -> None:
    rehearsal = rehearse(write_scene(flight_scene(100, 90)), 30)
    assert (rehearsal.shares == 1).all()
    result = rehearsal.fly(parse_faults("ndsm:frozen@10-12,rgir:stuck@20"))
    assert result.passed, result
    assert (result.tiles, result.outside_tiles, result.inside_tiles) == (30, 30 - 3 - 2 - 1 - 2, 8)


def test_a_rehearsed_flight_makes_the_map_of_a_run(toy_bundle, rehearse, write_scene, tmp_path) -> None:
    """The references equal the published maps of runs with both sensors, and with each alone."""
    paths = write_scene(flight_scene(200, 230))
    rehearsal = rehearse(paths, 20)
    tiles = list(Flight(rasters=rehearsal._flight.rasters, tile_px=64, halo_px=8, tiles=20))
    for number, scenario in enumerate(Scenario):
        alive = {sensor: paths[sensor] for sensor in Sensor if sensor in scenario.sensors}
        run_told(request_for(toy_bundle, alive, tmp_path / scenario), Watcher())
        for layer, name in enumerate(MAPS):
            with rasterio.open(tmp_path / scenario / name) as file:
                published = file.read(1)
            for tile in tiles:
                target = tile.target
                mine = rehearsal._maps[number, tile.index, layer, : target.height, : target.width]
                theirs = published[target.row : target.row + target.height, target.col : target.col + target.width]
                np.testing.assert_array_equal(mine, theirs)


def test_inside_and_outside_are_held_against_the_right_map(rehearse, write_scene) -> None:
    """Spoil one reference: only the tiles that are held against it differ."""
    rehearsal = rehearse(write_scene(flight_scene(330, 410)), 18)
    faults = parse_faults("ndsm:late@6-9")
    alone = list(Scenario).index(Scenario.MISSING_NDSM)
    rehearsal._maps[alone, 7, 0, 3, 4] ^= 1
    spoiled = rehearsal.fly(faults)
    assert (spoiled.passed, spoiled.why) == (False, "the map differs inside")
    rehearsal._maps[alone, 7, 0, 3, 4] ^= 1
    rehearsal._maps[list(Scenario).index(Scenario.FULL), 15, 1, 0, 0] ^= 1
    spoiled = rehearsal.fly(faults)
    assert (spoiled.passed, spoiled.why) == (False, "the map differs outside")
    rehearsal._maps[list(Scenario).index(Scenario.FULL), 7, 1, 0, 0] ^= 1  # nothing is held against that tile there
    rehearsal._maps[list(Scenario).index(Scenario.FULL), 15, 1, 0, 0] ^= 1
    assert rehearsal.fly(faults).passed


def test_nodata_of_the_rasters_is_no_alarm_and_no_loss(rehearse, write_scene) -> None:
    scene: Scene = flight_scene(330, 410)
    scene[1][Sensor.NDSM][:, 150:260] = False
    scene[1][Sensor.RGIR][100:180, 300:] = False
    rehearsal = rehearse(write_scene(scene), 40)
    assert not (rehearsal.shares == 1).all()
    for faults in ("rgir:dark@3-7", "ndsm:constant@11-", "rgir:late@9-12,ndsm:error@20-23"):
        result = rehearsal.fly(parse_faults(faults))
        assert result.passed, (faults, result)


def test_both_sensors_dead_is_expected_to_map_nothing(rehearse, write_scene) -> None:
    scene = flight_scene(330, 410)
    rehearsal = rehearse(write_scene(scene), 20)
    result = rehearsal.fly(parse_faults("rgir:late@8-10,ndsm:dead@8-10"))
    assert result.passed, result
    assert (result.lost, result.inside_tiles) == (0, 3 + 2)
    nothing = toy_map(scene[0], {sensor: np.zeros((330, 410), bool) for sensor in Sensor})
    assert {int(each.max()) for each in nothing} == {NODATA_CLASS, 0, Provenance.NONE}


def test_one_sensor_alone_cannot_be_tested(toy_bundle, tmp_path, capsys) -> None:
    assert main(["--rgir", str(tmp_path / "a.tif")]) == 2
    assert "pass both --rgir and --ndsm" in capsys.readouterr().err
    assert main(["--tiles", "3"]) == 2
    assert "at least 18" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_told_before_the_flights(toy_bundle, write_scene, tmp_path, capsys) -> None:
    assert main(["--csv", str(tmp_path / "none" / "matrix.csv")]) == 4
    out = capsys.readouterr()
    assert "cannot be written" in out.err
    assert not out.out


def test_soft_faults_are_soft() -> None:
    """The matrix relies on it: these may be used before they are proven."""
    (holes,) = parse_faults("rgir:holes@3")
    assert holes.kind is Kind.HOLES
    assert not holes.expected_hard
