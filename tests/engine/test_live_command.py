"""``python -m engine.run --live`` as a user meets it."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest
import rasterio

from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from engine.run import build_parser, main
from tests.conftest import make_scene


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main`` sets up logging and signals for a process of its own; give each test a fresh start."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.fixture
def frames(write_scene, tmp_path: Path) -> Path:
    """Two frames, the second without heights."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for stamp, sensors in (("1", list(Sensor)), ("2", [Sensor.RGIR])):
        paths = write_scene(make_scene(80, 90, holes=False, seed=int(stamp)), folder=stamp)
        for sensor in sensors:
            paths[sensor].rename(folder / f"{sensor}_{stamp}.tif")
    return folder


def arguments(frames: Path, bundle: Bundle, *more: str) -> list[str]:
    always = ["--bundle", str(bundle.root), "--partner-wait", "150", "--idle-exit", "0.3", "--sensors", "rgir,ndsm"]
    return ["--live", str(frames), "--output", str(frames.parent / "maps"), *always, *more]


def test_frames_are_mapped_into_folders_and_told_one_by_one(frames, toy_bundle, tmp_path, capsys) -> None:
    assert main(arguments(frames, toy_bundle, "--json")) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["started", "frame", "frame", "finished"]
    assert [(event["stamp"], event["scenario"]) for event in events[1:3]] == [("1", "full"), ("2", "missing_ndsm")]
    assert events[2]["absent"]["ndsm"]["fault"] == "late"
    assert events[3]["run"] == json.loads((tmp_path / "maps" / "run.json").read_text())
    with rasterio.open(tmp_path / "maps" / "1" / "classes.tif") as file:
        assert file.shape == (80, 90)


def test_a_second_flight_into_the_same_folder_is_refused(frames, toy_bundle, capsys) -> None:
    assert main(arguments(frames, toy_bundle, "--quiet")) == 0
    assert main(arguments(frames, toy_bundle, "--quiet")) == 4
    assert "--resume" in capsys.readouterr().err
    assert main(arguments(frames, toy_bundle, "--quiet", "--resume")) == 0
    assert main(arguments(frames, toy_bundle, "--quiet", "--overwrite")) == 0
    assert capsys.readouterr() == ("", "")


def test_frames_of_which_nothing_can_be_read_end_in_the_code_for_lost_tiles(frames, toy_bundle, capsys) -> None:
    for path in frames.iterdir():
        other = next(each for each in Sensor if not path.name.startswith(each))
        path.rename(frames / f"{other}_{path.name.split('_')[1]}.swap")
    for path in list(frames.iterdir()):
        path.rename(path.with_suffix(".tif"))
    assert main(arguments(frames, toy_bundle, "--quiet")) == 8
    assert "2 of 2 tiles hold no data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "exit_code", "says"),
    [
        (["--rgir", "a.tif"], 2, "leave --rgir away"),
        (["--rate", "10Hz"], 2, "leave --rate away"),
        (["--pattern", "{stamp}.tif"], 2, "{sensor} and {stamp}"),
        (["--partner-wait", "0"], 2, "--partner-wait must be a positive number"),
        (["--sensors", "lidar"], 2, "rgir, ndsm"),
        (["--threads", "0"], 2, "--threads must be a positive number, received 0"),
        (["--live", "nowhere"], 3, "nowhere is none"),
        (["--bundle", "nowhere"], 5, "manifest.json"),
    ],
)
def test_bad_options_end_with_their_code_and_write_nothing(more, exit_code, says, frames, toy_bundle, capsys) -> None:
    before = sorted(frames.parent.rglob("*"))
    assert main(arguments(frames, toy_bundle, "--quiet", *more)) == exit_code
    message = capsys.readouterr().err
    assert says in message
    assert [line.startswith("error: ") for line in message.splitlines()] == [True]
    assert sorted(frames.parent.rglob("*")) == before


@pytest.mark.parametrize("option", ["--pattern", "--partner-wait", "--idle-exit"])
def test_options_of_a_live_folder_need_one(option: str, capsys) -> None:
    assert main([option, "1"]) == 2
    assert f"{option} needs --live DIR" in capsys.readouterr().err


def test_dry_run_says_what_would_run_and_writes_nothing(frames, toy_bundle, capsys) -> None:
    before = sorted(frames.parent.rglob("*"))
    assert main(arguments(frames, toy_bundle, "--dry-run", "--json", "--pattern", "sidecar")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["live"]["pattern"] == "sidecar"
    assert plan["health"]["watched"] is False
    assert sorted(frames.parent.rglob("*")) == before


def test_the_help_shows_how_to_fly() -> None:
    assert "python -m engine.run --live" in build_parser().format_help()
