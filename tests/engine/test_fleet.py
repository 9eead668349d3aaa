"""Many rasters: each map as a lone run makes it, each once, and one that fails costs no other."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from engine import run as command
from engine.contract.bundle import Bundle
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario, Sensor
from engine.fleet import __main__ as fleet_command
from engine.fleet.__main__ import build_parser
from engine.fleet.book import Book
from engine.fleet.here import parse_shard
from engine.fleet.lists import read_units
from engine.fleet.store import FolderStore
from engine.fleet.units import Unit
from engine.fleet.worker import UnitOutcome, UnitState, Worker
from engine.request import PATTERN
from engine.runner import run
from tests.conftest import make_scene
from tests.engine.runs import request_for

Write = Callable[..., dict[Sensor, Path]]
MAPS = ("classes.tif", "confidence.tif", "provenance.tif")


def read(source: Path, **options: object) -> list[Unit]:
    return read_units(source, **{"sensor": None, "pattern": PATTERN, **options})  # type: ignore[arg-type]


def write_list(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def scenes(write_scene: Write) -> list[dict[Sensor, Path]]:
    return [write_scene(make_scene(70, 90, seed=seed), f"scene{seed}") for seed in range(3)]


@pytest.fixture
def pairs(scenes: list[dict[Sensor, Path]], tmp_path: Path) -> Path:
    lines = [f"{each[Sensor.RGIR]},{each[Sensor.NDSM]}" for each in scenes]
    lines[1] = lines[1].partition(",")[0] + ","
    return write_list(tmp_path / "pairs.csv", "\n".join(["rgir,ndsm", *lines, ""]))


def gemmnet(bundle: Bundle, source: Path, output: Path, *more: str) -> int:
    options = ["--list", source, "--output", output, "--bundle", bundle.root, "--precision", "fp32", "--quiet", *more]
    return command.main([str(option) for option in options])


def summary(output: Path, name: str = "fleet.json") -> dict[str, object]:
    told: dict[str, object] = json.loads((output / name).read_text())
    return told


def test_every_map_of_a_list_is_the_one_of_a_lone_run_and_is_made_once(
    toy_bundle: Bundle, scenes: list[dict[Sensor, Path]], pairs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "maps"
    assert gemmnet(toy_bundle, pairs, output) == 0
    for number, paths in enumerate(scenes):
        paths = {Sensor.RGIR: paths[Sensor.RGIR]} if number == 1 else paths
        alone = tmp_path / f"alone{number}"
        run(request_for(toy_bundle, paths, alone, watch=number != 1))
        for name in MAPS:
            assert (output / f"scene{number}" / name).read_bytes() == (alone / name).read_bytes()
    markers = [(output / f"scene{number}" / "unit.json").stat().st_mtime_ns for number in range(3)]
    assert gemmnet(toy_bundle, pairs, output) == 0
    assert [(output / f"scene{number}" / "unit.json").stat().st_mtime_ns for number in range(3)] == markers
    assert summary(output)["states"] == {"mapped": 0, "there": 3, "failed": 0}
    assert not list((output / ".fleet").rglob("*.*"))

    whole = (output / "scene2" / "classes.tif").read_bytes()
    (output / "scene2" / "classes.tif").write_bytes(whole[:-1])
    assert gemmnet(toy_bundle, pairs, output) == 0
    assert summary(output)["states"] == {"mapped": 1, "there": 2, "failed": 0}
    assert (output / "scene2" / "classes.tif").read_bytes() == whole


def test_maps_of_other_inputs_are_replaced_on_demand_alone_and_what_a_user_put_there_is_kept(
    toy_bundle: Bundle, scenes: list[dict[Sensor, Path]], tmp_path: Path
) -> None:
    output, source = tmp_path / "maps", write_list(tmp_path / "one.csv", f"rgir\n{scenes[0][Sensor.RGIR]}\n")
    assert gemmnet(toy_bundle, source, output) == 0
    before = (output / "scene0" / "classes.tif").read_bytes()
    (output / "scene0" / "notes.txt").write_text("mine")
    os.replace(scenes[1][Sensor.RGIR], scenes[0][Sensor.RGIR])
    assert gemmnet(toy_bundle, source, output) == 9
    assert "pass --overwrite" in summary(output)["failed"]["scene0"]  # type: ignore[index]
    assert (output / "scene0" / "classes.tif").read_bytes() == before
    assert gemmnet(toy_bundle, source, output, "--overwrite") == 0
    assert (output / "scene0" / "classes.tif").read_bytes() != before
    assert [path.read_text() for path in output.rglob("notes.txt")] == ["mine"]


def test_broken_lines_and_rasters_cost_no_other_unit_and_have_a_line_each(
    toy_bundle: Bundle, scenes: list[dict[Sensor, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = scenes[0][Sensor.RGIR]
    lines = [
        "rgir,ndsm,name",
        f"{good},,a",
        "too,few",
        "",
        ",,",
        "gone.tif,,b",
        f"{good},,A",
        f"{good},,../c",
        f"{good},,d",
    ]
    source, output = write_list(tmp_path / "list.csv", "\n".join(lines)), tmp_path / "maps"
    assert gemmnet(toy_bundle, source, output) == 9
    told = summary(output)
    assert told["states"] == {"mapped": 2, "there": 0, "failed": 4}
    assert told["retries"] == 2  # of the missing raster, which may be one of a network
    reasons: dict[str, str] = told["failed"]  # type: ignore[assignment]
    assert "line 3" in reasons["line-3"]
    assert "2 fields, not 3" in reasons["line-3"]
    assert "is that of line 2" in reasons["line-7"]
    assert "line 8" in reasons["line-8"]
    assert "does not exist" in reasons["b"]
    assert (output / "a" / "unit.json").exists()
    assert (output / "d" / "unit.json").exists()
    errors = capsys.readouterr().err.splitlines()
    assert sum("ERROR" in line for line in errors) == 4
    assert errors[-1].startswith("error: 4 of 6 units failed")


def test_an_error_of_a_unit_is_said_once_and_not_by_gdal_as_well(
    toy_bundle: Bundle, scenes: list[dict[Sensor, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_list(tmp_path / "list.csv", f"rgir,name\n{scenes[0][Sensor.RGIR]},a\ngone.tif,b")
    options = ["--list", source, "--output", tmp_path / "maps", "--bundle", toy_bundle.root, "--precision", "fp32"]
    assert command.main([str(option) for option in options]) == 9
    errors = capsys.readouterr().err
    assert errors.count("gone.tif does not exist") == 1
    assert "GDAL signalled" not in errors


@pytest.mark.parametrize(
    ("text", "rule"),
    [("", "names no raster"), ("red,green\na,b\n", "its first line names columns"), ("rgir\n", "names no raster")],
)
def test_a_list_without_units_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        read(write_list(tmp_path / "list.csv", text))
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("raster", "name"),
    [
        ("rgir_0001.tif", "0001"),
        ("0001-RGIR.tif", "0001"),
        ("north/rgir.tif", "north"),
        ("top_1_RGIR_20cm.tif", "top_1_20cm"),
        ("ortho.v2.tif", "ortho.v2"),
        ("/vsis3/bucket/a b.tif", "a_b"),
        ("figirl.tif", "figirl"),
    ],
)
def test_a_unit_is_called_as_its_raster_without_the_word_for_the_sensor(tmp_path: Path, raster: str, name: str) -> None:
    (unit,) = read(write_list(tmp_path / "list.csv", f"rgir\n{raster}\n"))
    assert unit.name == name
    assert dict(unit.rasters)["rgir"] == (raster if raster.startswith("/") else str(tmp_path / raster))


def test_a_folder_is_a_list_of_pairs_or_of_the_rasters_of_one_sensor(tmp_path: Path) -> None:
    for name in ("rgir_10.tif", "ndsm_10.tif", "RGIR_9.tif", "notes.txt"):
        (tmp_path / name).touch()
    nine, ten = read(tmp_path)
    assert (nine.name, dict(nine.rasters)) == ("9", {"rgir": str(tmp_path / "RGIR_9.tif")})
    assert (ten.name, set(dict(ten.rasters))) == ("10", {"rgir", "ndsm"})
    assert [unit.name for unit in read(tmp_path, sensor=Sensor.RGIR)] == ["RGIR_9", "ndsm_10", "rgir_10"]


def test_shards_share_a_list_without_mapping_anything_twice(toy_bundle: Bundle, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps"
    for number in range(2):
        assert gemmnet(toy_bundle, pairs, output, "--shard", f"{number}/2") == 0
    told = [summary(output, f"fleet-{number}-of-2.json")["states"] for number in range(2)]
    assert told == [{"mapped": 2, "there": 0, "failed": 0}, {"mapped": 1, "there": 0, "failed": 0}]
    for text in ("2/2", "1", "-1/2", "0/0"):
        with pytest.raises(UsageError, match="--shard takes I/N"):
            parse_shard(text)


def test_a_unit_is_claimed_by_one_and_free_once_its_process_is_gone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with store.claim("k") as first, store.claim("k") as second, store.claim("other") as other:
        assert (first is None, second is None, other is None) == (False, True, False)
    program = (
        "import os, sys; from pathlib import Path; from engine.fleet.store import FolderStore\n"
        "with FolderStore(Path(sys.argv[1])).claim('k') as claim: os._exit(claim.died)"
    )
    for died in range(3):
        assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == died
    with store.claim("k") as claim:
        assert claim is not None
        assert claim.died == 3
    with store.claim("k") as claim:
        assert claim is not None
        assert claim.died == 0  # whoever mapped it last lives


def test_the_second_to_publish_a_unit_leaves_what_the_first_has(
    toy_bundle: Bundle, scenes: list[dict[Sensor, Path]], tmp_path: Path
) -> None:
    output, source = tmp_path / "maps", write_list(tmp_path / "one.csv", f"rgir\n{scenes[0][Sensor.RGIR]}\n")
    assert gemmnet(toy_bundle, source, output) == 0
    store = FolderStore(output)
    marker = store.marker("scene0")
    assert marker is not None
    before = (output / "scene0").stat().st_ino
    with store.claim("late") as claim:
        assert claim is not None
        claim.folder.mkdir(parents=True)
        assert store.publish(claim, marker) is False
        assert not claim.folder.exists()
    assert (output / "scene0").stat().st_ino == before


def test_a_unit_that_fails_is_tried_three_times_behind_the_others(tmp_path: Path) -> None:
    ended: list[str] = []
    with Book(
        [Unit(name="bad"), Unit(name="good")], tmp_path, tell=lambda _, outcome: ended.append(outcome.unit)
    ) as book:
        taken = []
        while (unit := book.take()) is not None:
            taken.append(unit.name)
            state = UnitState.FAILED if unit.name == "bad" else UnitState.MAPPED
            book.settle(unit, UnitOutcome(unit=unit.name, state=state, reason="broken pipe", again=True))
        record, _ = book.close(bundle="")
    assert taken == ["bad", "good", "bad", "bad"]
    assert ended == ["good", "bad"]
    assert (record.retries, record.failed) == (2, {"bad": "broken pipe"})
    rows = (tmp_path / "units.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [["good", "mapped", "1"], ["bad", "failed", "3"]]


def test_an_interrupted_list_goes_on_to_the_same_bytes(toy_bundle: Bundle, pairs: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from engine import run; from engine.fleet.console import FleetTeller\n"
        "seen = []\n"
        "def tile_done(self, report):\n"
        "    seen.append(report)\n"
        "    if len(seen) == 6: os.kill(os.getpid(), signal.SIGINT)\n"
        "FleetTeller.tile_done = tile_done\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    options = ["--list", pairs, "--bundle", toy_bundle.root, "--precision", "fp32", "--quiet"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [sys.executable, "-c", program, *map(str, options), "--output", str(stopped)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert "repeat the command to finish" in ended.stderr
    assert summary(stopped)["ended"] == "interrupted"
    assert not (stopped / "scene2").exists()
    for output in (stopped, whole):
        assert gemmnet(toy_bundle, pairs, output) == 0
    assert summary(stopped)["states"]["there"] >= 1  # type: ignore[index]
    for number in range(3):
        for name in MAPS:
            assert (stopped / f"scene{number}" / name).read_bytes() == (whole / f"scene{number}" / name).read_bytes()


def test_the_mosaic_of_all_maps_has_the_pixels_of_each_in_its_place(
    toy_bundle: Bundle, scenes: list[dict[Sensor, Path]], tmp_path: Path
) -> None:
    images = []
    for number in range(2):
        images.append(scenes[number][Sensor.RGIR])
        with rasterio.open(images[-1], "r+") as file:
            file.transform = from_origin(650000 + 12 * number, 6860000 - 4 * number, 0.2, 0.2)
    source, output = write_list(tmp_path / "two.csv", "\n".join(["rgir", *map(str, images)])), tmp_path / "maps"
    assert gemmnet(toy_bundle, source, output) == 0
    with rasterio.open(output / "classes.vrt") as mosaic, rasterio.open(output / "scene0" / "classes.tif") as first:
        with rasterio.open(output / "scene1" / "classes.tif") as second:
            one, two = first.read(1), second.read(1)
        page = (output / "fleet.html").read_text()
        assert page.count("<rect") == 2
        assert "2 units, 0 failed, 0 lack tiles." in page
        assert mosaic.nodata == 255
        assert mosaic.colormap(1)[1] == first.colormap(1)[1]
        whole = np.full((90, 150), 255, np.uint8)
        whole[:70, :90] = one
        part = whole[20:, 60:]
        part[two != 255] = two[two != 255]
        np.testing.assert_array_equal(mosaic.read(1), whole)


def test_a_dry_run_counts_pixels_names_faults_and_writes_nothing(
    toy_bundle: Bundle, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pairs.open("a") as file:
        file.write("gone.tif,\na,b,c\n")
    output = tmp_path / "maps"
    assert gemmnet(toy_bundle, pairs, output, "--dry-run", "--json", "--speed", "0.001", "--price", "1000") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["units"], told["mpx"], told["tiles"]) == (5, 0.019, 12)
    assert set(told["faults"]) == {"gone", "line-6"}
    assert told["price"] == pytest.approx(told["worker_hours"] * 1000, rel=0.1)
    assert not output.exists()


def test_options_of_a_single_raster_are_refused_with_a_list(
    toy_bundle: Bundle, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gemmnet(toy_bundle, pairs, tmp_path / "maps", "--rgir", "a.tif") == 2
    assert command.main(["--shard", "0/2"]) == 2
    assert "leave --rgir away" in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_large_raster_is_mapped_in_blocks_by_whoever_is_free_to_the_bytes_of_one_run(
    toy_bundle: Bundle, write_scene: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    paths = write_scene(make_scene(260, 90, seed=5), "large")
    options = build_parser().parse_args(["--bundle", str(toy_bundle.root), "--precision", "fp32", "--list", "x"])
    rasters = tuple((sensor.value, str(paths[sensor])) for sensor in Sensor)
    output, taken = tmp_path / "maps", []
    workers = [Worker(options, FolderStore(output), Scenario, block_mpx=0.01) for _ in range(2)]
    if fails:
        monkeypatch.setattr("engine.fleet.blocks.part_of", lambda *_: 1 / 0)
    with Book([Unit(name="large", rasters=rasters)], output, tell=lambda *_: None) as book:
        for worker in itertools.cycle(workers):
            unit = book.take()
            if unit is None:
                break
            taken.append(unit.block)
            book.settle(unit, worker.map(unit))
        record, _ = book.close(bundle="")
    if fails:
        assert record.states == {"mapped": 0, "there": 0, "failed": 1}
        assert "ZeroDivisionError" in record.failed["large"]
        return
    assert taken == [None, 0, 1, 2, None]
    assert record.states == {"mapped": 1, "there": 0, "failed": 0}
    run(request_for(toy_bundle, paths, tmp_path / "alone", watch=True))
    for name in MAPS:
        assert (output / "large" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not list((output / ".fleet" / "blocks").iterdir())


@pytest.mark.slow
def test_two_drivers_on_one_output_share_the_units_and_lose_none(
    toy_bundle: Bundle, write_scene: Write, tmp_path: Path
) -> None:
    lines = [str(write_scene(make_scene(70, 90, seed=seed), f"scene{seed}")[Sensor.RGIR]) for seed in range(8)]
    source, output = write_list(tmp_path / "list.csv", "\n".join(["rgir", *lines])), tmp_path / "maps"
    options = ["--list", source, "--output", output, "--bundle", toy_bundle.root, "--json"]
    command = [sys.executable, "-m", "engine.run", *map(str, options)]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [[json.loads(line) for line in driver.communicate()[0].splitlines()] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0]
    states = [Counter(each["state"] for each in mine if each["event"] == "unit") for mine in told]
    assert sum(each["mapped"] for each in states) == 8, states
    assert all(each.total() == 8 for each in states), states


def test_without_ray_the_install_command_is_told(
    toy_bundle: Bundle, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "engine.fleet.cluster", raising=False)
    options = ["--list", str(pairs), "--bundle", str(toy_bundle.root), "--output", str(tmp_path / "maps")]
    assert fleet_command.main(options) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "pip install 'gemmnet-edge[fleet]', or pass --shard I/N" in told
    assert not (tmp_path / "maps").exists()
