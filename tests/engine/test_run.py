"""The command line as a user meets it: exit codes, messages, signals, machine-readable output."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from engine.contract.sensors import Sensor
from engine.run import build_parser, main
from tests.conftest import make_scene, write_toy_bundle
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import request_for, run_told

ROOT = Path(__file__).parent.parent.parent
MAPS = {"classes.tif", "confidence.tif", "provenance.tif", "classes.qml", "provenance.qml"}
OUTPUTS = {*MAPS, "run.json", "tiles.csv", "quicklook.png", "item.json"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "engine.run", *(str(argument) for argument in arguments)]


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main`` sets up logging and signals for a process of its own; give each test a fresh start."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("sensors", ["rgir", "ndsm", "rgir,ndsm"])
def test_the_demo_runs_with_nothing_but_the_alive_sensors(sensors: str, tmp_path: Path) -> None:
    done = run("--sensors", sensors, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = tmp_path / f"segmented-{sensors.replace(',', '-')}"
    assert {path.name for path in output.iterdir()} == OUTPUTS
    assert "Mpx/s" in done.stderr
    with rasterio.open(output / "classes.tif") as file, rasterio.open(ROOT / "engine/demo/scene/rgir.tif") as scene:
        assert (file.crs, file.transform, file.shape) == (scene.crs, scene.transform, scene.shape)
        assert file.nodata == 255
        assert len(np.unique(file.read(1))) >= 5
    with Image.open(output / "quicklook.png") as picture:
        assert picture.width > 4 * picture.height / 2


def test_a_second_run_into_the_same_folder_is_refused(toy_bundle, write_scene, tmp_path, monkeypatch, capsys) -> None:
    paths = write_scene(make_scene(80, 90))
    monkeypatch.chdir(tmp_path)
    arguments = ["--rgir", str(paths[Sensor.RGIR]), "--bundle", str(toy_bundle.root), "--quiet"]
    assert main(arguments) == 0
    assert main(arguments) == 4
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["--sensors", "lidar"], 2, "rgir, ndsm"),
        (["--rgir", "{rgir}", "--sensors", "rgir,ndsm"], 2, "add --ndsm PATH"),
        (["--rgir", "{rgir}", "--overwrite", "--resume"], 2, "pass one of them"),
        (["--rgir", "{rgir}", "--threads", "0"], 2, "--threads must be a positive number, received 0"),
        (["--rgir", "{rgir}", "--inject", "rgir:noise@3"], 2, "--sensors auto"),
        (["--rgir", "{rgir}", "--sensors", "auto", "--inject", "rgir:melted@3"], 2, "received 'rgir:melted@3'"),
        (["--rgir", "{rgir}", "--sensors", "auto", "--health", "rgir.charm=3"], 2, "received 'charm'"),
        (["--rgir", "{rgir}", "--rate", "0"], 2, "must be a positive number, received 0"),
        (["--rgir", "{rgir}", "--when-behind", "drop-oldest"], 2, "needs --rate"),
        (["--rgir", "{rgir}", "--rgir-bands", "4,1"], 2, "such as 4,1,2"),
        (["--rgir", "{rgir}", "--halo", "40"], 2, "below half the tile of 64 px, received 40"),
        (["--rgir", "nowhere.tif"], 3, "nowhere.tif"),
        (["--rgir", "{ndsm}"], 3, "3 band"),
        (["--ndsm", "{rgir}"], 3, "band"),
        (["--rgir", "{text}"], 3, "text.tif"),
        (["--rgir", "{rgir}", "--output", "{text}"], 4, "is a file"),
        (["--rgir", "{rgir}", "--bundle", "{folder}"], 5, "manifest.json"),
        (["--rgir", "{rgir}", "--resume"], 7, "does not exist"),
    ],
)
def test_bad_input_ends_with_its_code_and_one_line(
    arguments, exit_code, says, toy_bundle, write_scene, tmp_path, monkeypatch, capsys
) -> None:
    paths = write_scene(make_scene(80, 90))
    (tmp_path / "text.tif").write_text("this is no raster")
    (tmp_path / "empty").mkdir()
    names = {"rgir": paths[Sensor.RGIR], "ndsm": paths[Sensor.NDSM], "text": tmp_path / "text.tif"}
    filled = [argument.format(**names, folder=tmp_path / "empty") for argument in arguments]
    if "--bundle" not in filled:
        filled += ["--bundle", str(toy_bundle.root)]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(filled) == exit_code
    message = capsys.readouterr().err
    assert says in message
    assert "GDAL signalled" not in message, "the error says it"
    told = [line for line in message.splitlines() if not line.startswith("INFO ")]
    assert [line.startswith("error: ") for line in told] == [True]
    assert main([*filled, "--json"]) == exit_code
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (event["event"], event["exit_code"]) == ("error", exit_code)
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_json_lines_tell_the_whole_story(toy_bundle, write_scene, tmp_path, monkeypatch, capsys) -> None:
    paths = write_scene(flight_scene(200, 210))
    monkeypatch.chdir(tmp_path)
    arguments = ["--rgir", paths[Sensor.RGIR], "--ndsm", paths[Sensor.NDSM], "--bundle", toy_bundle.root, "--json"]
    assert main([str(argument) for argument in arguments]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "started"
    assert events[-1]["event"] == "finished"
    assert events[-1]["run"] == json.loads((tmp_path / "segmented-rgir-ndsm" / "run.json").read_text())
    last = [event for event in events if event["event"] == "progress"][-1]
    assert last["tiles_done"] == last["tiles"] == events[0]["tiling"]["tiles"]


def test_dry_run_says_what_would_run_and_writes_nothing(toy_bundle, write_scene, tmp_path, monkeypatch, capsys) -> None:
    paths = write_scene(make_scene(200, 210))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(["--rgir", str(paths[Sensor.RGIR]), "--bundle", str(toy_bundle.root), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["event"] == "plan"
    assert plan["scenarios"] == ["missing_ndsm"]
    assert plan["grid"]["width"] == 210
    assert plan["tiling"]["tiles"] == 20
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_bytes(stop: signal.Signals, toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(flight_scene(1000, 1000))
    arguments = ["--rgir", paths[Sensor.RGIR], "--ndsm", paths[Sensor.NDSM], "--bundle", toy_bundle.root, "--json"]
    arguments += [
        "--blend",
        "none",
    ]  # goes on with the next tile; cross-fading repeats a row of tiles, here all of them
    process = subprocess.Popen(
        command(*arguments, "--output", tmp_path / "stopped"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "progress":
            process.send_signal(stop)
            break
    rest, stderr = process.communicate(timeout=120)
    assert not OUTPUTS & {path.name for path in (tmp_path / "stopped").iterdir()}
    if stop == signal.SIGKILL:  # no last word: the journal is up to some seconds old
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, stderr
        assert "--resume" in json.loads(rest.splitlines()[-1])["message"]
    resumed = run(*arguments, "--output", tmp_path / "stopped", "--resume", cwd=ROOT)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[0])["first_tile"] > 0 or stop == signal.SIGKILL
    assert run(*arguments, "--output", tmp_path / "whole", cwd=ROOT).returncode == 0
    for name in OUTPUTS - {"run.json", "tiles.csv", "item.json"}:  # these tell times, the last the folder's name too
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_every_option_has_help_and_the_module_shows_examples() -> None:
    parser = build_parser()
    text = parser.format_help()
    assert text.count("python -m engine.run") >= 4
    undocumented = [a.dest for a in parser._actions if not a.help]
    assert undocumented == []


def test_help_works_without_torch_and_friends(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Exit codes" in done.stdout


def test_a_map_without_any_data_is_no_silent_success(toy_bundle, write_scene, tmp_path, monkeypatch, capsys) -> None:
    rasters, valid = make_scene(70, 90, holes=False)
    for sensor in valid:
        valid[sensor][:] = False
    paths = write_scene((rasters, valid))
    monkeypatch.chdir(tmp_path)
    options = ["--bundle", str(toy_bundle.root), "--backend", "onnxruntime", "--ndsm", str(paths[Sensor.NDSM])]
    assert main([*options, "--output", "out", "--sensors", "ndsm"]) == 8
    assert "holds no pixel with data" in capsys.readouterr().err
    assert (tmp_path / "out" / "classes.tif").exists()


def test_what_is_told_before_the_flight_stays_in_its_record(write_scene, tmp_path) -> None:
    rasters, valid = flight_scene(200, 210)
    coarse = rasters[Sensor.RGIR][:1, ::8, ::8].repeat(8, axis=1).repeat(8, axis=2)
    rasters[Sensor.RGIR][:] = coarse[:, :200, :210]  # one band three times
    paths = write_scene((rasters, valid))
    bundle = write_toy_bundle(tmp_path / "bundle", tile_px=128)
    told = run_told(request_for(bundle, paths, tmp_path / "map", watch=True, health=("audit.every_tiles=7",)))
    found = {(each["sensor"], each["fault"]): each["detail"] for each in told["health"]["advice"]}
    assert "--rgir-bands" in found["rgir", "bands"]
    assert told["health"]["audit"]["every_tiles"] == 7
