"""Whole runs in which something fails: a sensor, a file, a backend, the time. The maps are held against the oracle."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio

from engine.backends.options import BackendOptions
from engine.contract.bundle import NODATA_CLASS
from engine.contract.errors import BackendError, InputError, InterruptedRunError, ResumeError, UsageError
from engine.contract.sensors import Provenance, Sensor
from engine.health.faults import parse_faults
from engine.health.monitor import Fault, State
from engine.journal import FOLDER
from engine.rasters.sources import IDENTITY_BYTES
from engine.run import main
from engine.tile_log import TileRow, read_tile_log
from tests.conftest import Scene, toy_map
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import Watcher, request_for, run_told
from tests.engine.test_resilient import Faulty
from tests.engine.test_segment import MAPS, assert_equals_oracle, read_maps


def fly(bundle, paths, output: Path, watcher: Watcher | None = None, **options) -> tuple[dict, list[TileRow]]:
    """Run with watched sensors and tiles that do not cross-fade; run.json and the tile log."""
    options = {"watch": True, "blend": "none", **options}
    told = run_told(request_for(bundle, paths, output, **options), watcher or Watcher())
    assert json.loads((output / "run.json").read_text()) == json.loads(json.dumps(told))
    return told, list(read_tile_log(output / "tiles.csv"))


def owner(rows: list[TileRow], shape: tuple[int, int]) -> np.ndarray:
    """Index of the tile that owns each pixel."""
    tile = np.full(shape, -1)
    for row in rows:
        window = row.target
        tile[window.row : window.row + window.height, window.col : window.col + window.width] = row.tile
    assert (tile >= 0).all()
    return tile


def assert_maps_follow_the_log(output: Path, scene: Scene, rows: list[TileRow]) -> None:
    """Every pixel is mapped from the sensors that its tile's verdicts allow, and from no other."""
    rasters, valid = scene
    tile = owner(rows, valid[Sensor.RGIR].shape)
    usable = {}
    for sensor in Sensor:
        alive = np.array([not row.skipped and row.verdicts[sensor].usable for row in rows])
        usable[sensor] = valid[sensor] & alive[tile]
    expected = toy_map(rasters, usable)
    classes, confidence, provenance = read_maps(output)
    np.testing.assert_array_equal(provenance, expected[2])
    np.testing.assert_array_equal(classes == NODATA_CLASS, expected[0] == NODATA_CLASS)
    assert (classes == expected[0]).mean() > 0.9995
    assert np.abs(confidence.astype(int) - expected[1]).max() <= 1


def cut(path: Path) -> bytes:
    """Truncate a file in its middle; returns its whole content."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


def untimed(path: Path) -> list[dict[str, str]]:
    """The rows of a tile log without their times."""
    with path.open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.endswith("_ms")} for row in csv.DictReader(file)
        ]


def test_watching_healthy_sensors_changes_no_byte(toy_bundle, write_scene, tmp_path) -> None:
    scene = flight_scene(330, 410)
    paths = write_scene(scene)
    told, rows = fly(toy_bundle, paths, tmp_path / "watched")
    run_told(request_for(toy_bundle, paths, tmp_path / "trusted", blend="none"), Watcher())
    for name in (*MAPS, "quicklook.png"):
        assert (tmp_path / "watched" / name).read_bytes() == (tmp_path / "trusted" / name).read_bytes(), name
    assert_equals_oracle(tmp_path / "watched", scene, set(Sensor))
    assert told["health"]["changes"] == []
    assert told["health"]["states"] == {
        sensor: {"alive": len(rows), "degraded": 0, "dead": 0} for sensor in ("rgir", "ndsm")
    }
    assert (told["tiles_lost"], told["tiles_dropped"]) == (0, 0)
    assert told["latency_ms"]["tiles"] == told["tiling"]["tiles"] == len(rows)


def test_a_tile_in_which_a_sensor_dies_is_mapped_without_it(toy_bundle, write_scene, tmp_path, caplog) -> None:
    scene = flight_scene(330, 410)
    paths = write_scene(scene)
    _, clean_rows = fly(toy_bundle, paths, tmp_path / "clean")
    inject = "ndsm:frozen@9-12,rgir:dark@25,ndsm:error@40-41,ndsm:range@50-"
    with caplog.at_level(logging.INFO):
        told, rows = fly(toy_bundle, paths, tmp_path / "out", inject=parse_faults(inject))
    assert_maps_follow_the_log(tmp_path / "out", scene, rows)
    dead = {sensor: {row.tile for row in rows if row.verdicts[sensor].state is State.DEAD} for sensor in Sensor}
    recovery = 2  # tiles more: it is alive again in the third good one
    assert dead[Sensor.NDSM] == {*range(9, 13 + recovery), *range(40, 42 + recovery), *range(50, len(rows))}
    assert dead[Sensor.RGIR] == {*range(25, 26 + recovery)}

    assert [outcome["delay_tiles"] for outcome in told["injected"]["outcomes"]] == [0, 0, 0, 0]
    assert told["injected"]["false_alarms"] == {"rgir": 0, "ndsm": 0}
    assert told["tiles_lost"] == 0
    changes = [(c["tile"], c["sensor"], c["state"], c["fault"]) for c in told["health"]["changes"]]
    assert changes[:2] == [(9, "ndsm", "dead", "frozen"), (15, "ndsm", "alive", None)]
    assert changes[-1] == (50, "ndsm", "dead", "out_of_range")
    assert len(changes) == told["health"]["change_count"] == 7
    logged = [record for record in caplog.records if getattr(record, "event", "") == "sensor_state"]
    assert [(record.tile, record.sensor, record.state) for record in logged] == [c[:3] for c in changes]

    untouched = np.isin(
        owner(rows, (330, 410)), [row.tile for row in rows if all(v.usable for v in row.verdicts.values())]
    )
    for mine, clean in zip(read_maps(tmp_path / "out"), read_maps(tmp_path / "clean"), strict=True):
        np.testing.assert_array_equal(mine[untouched], clean[untouched])
    assert [row.target for row in rows] == [row.target for row in clean_rows]
    switched = [row.tile for row in rows if row.switched]
    assert switched == [9, 15, 25, 28, 40, 44, 50]
    assert told["latency_ms"]["switches"]["tiles"] == told["result"]["switch_count"] == len(switched)


def test_a_file_that_cannot_be_read_costs_its_sensor_and_no_tile(toy_bundle, write_scene, tmp_path) -> None:
    scene = flight_scene(640, 640)
    paths = write_scene(scene)
    cut(paths[Sensor.RGIR])
    told, rows = fly(toy_bundle, paths, tmp_path / "out")
    assert_maps_follow_the_log(tmp_path / "out", scene, rows)
    assert told["tiles_lost"] == 0
    assert told["health"]["faults"]["rgir"]["read_error"] > 0
    assert told["health"]["states"]["ndsm"]["alive"] == len(rows)
    first = told["health"]["changes"][0]
    assert (first["sensor"], first["state"], first["fault"]) == ("rgir", "dead", "read_error")


def test_when_no_sensor_can_be_read_the_rest_is_published_and_the_exit_code_says_so(
    toy_bundle, write_scene, tmp_path, capsys
) -> None:
    scene = flight_scene(640, 640)
    paths = write_scene(scene)
    for path in paths.values():
        cut(path)
    output = tmp_path / "out"
    arguments = ["--rgir", paths[Sensor.RGIR], "--ndsm", paths[Sensor.NDSM], "--bundle", toy_bundle.root, "--json"]
    arguments += ["--output", output, "--precision", "fp32", "--blend", "none"]
    assert main([str(argument) for argument in arguments]) == 8
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events][-2:] == ["finished", "error"]
    assert "hold no data" in events[-1]["message"]
    rows = list(read_tile_log(output / "tiles.csv"))
    lost = [row for row in rows if row.lost]
    assert events[-2]["run"]["tiles_lost"] == len(lost) > 0
    assert f"{len(lost)} of {len(rows)} tiles" in events[-1]["message"]
    assert {v.fault for row in lost for v in row.verdicts.values()} == {Fault.READ_ERROR}
    assert_maps_follow_the_log(output, scene, rows)


def test_trusted_sensors_end_the_run_where_they_cannot_be_read_and_it_can_be_resumed(
    toy_bundle, write_scene, tmp_path
) -> None:
    paths = write_scene(flight_scene(640, 640))
    run_told(request_for(toy_bundle, paths, tmp_path / "whole"), Watcher())
    times = paths[Sensor.RGIR].stat()
    content = paths[Sensor.RGIR].read_bytes()
    # what the key of a run knows of a file stays: as if the disk had failed, and not another file been put there
    half = len(content) // 2
    paths[Sensor.RGIR].write_bytes(content[:half] + bytes(half - IDENTITY_BYTES) + content[-IDENTITY_BYTES:])
    os.utime(paths[Sensor.RGIR], ns=(times.st_atime_ns, times.st_mtime_ns))
    output = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        run_told(request_for(toy_bundle, paths, output), Watcher())
    assert caught.value.exit_code == 3
    assert [path.name for path in output.iterdir()] == [FOLDER]
    paths[Sensor.RGIR].write_bytes(content)
    os.utime(paths[Sensor.RGIR], ns=(times.st_atime_ns, times.st_mtime_ns))
    watcher = Watcher()
    run_told(request_for(toy_bundle, paths, output, resume=True), watcher)
    assert watcher.first_tile > 0
    for name in (*MAPS, "quicklook.png"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def spoilt_scene(height: int, width: int) -> Scene:
    """A flight scene whose files hold the faults themselves: a strip of nDSM overflows, a block of RGIR is dark."""
    rasters, valid = flight_scene(height, width)
    rasters[Sensor.NDSM][:, height // 3 : height // 3 + 60, ::9] = 6553.5
    rasters[Sensor.RGIR][:, height // 2 :, width // 2 :] //= 30
    valid[Sensor.NDSM][:40, :90] = False
    return rasters, valid


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["none", "hann"])
def test_a_resumed_run_judges_as_one_that_was_never_stopped(
    blend, toy_bundle, write_scene, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("engine.stitcher.ACCUMULATOR_BYTES", 1)
    paths = write_scene(spoilt_scene(330, 410))
    whole, whole_rows = fly(toy_bundle, paths, tmp_path / "whole", blend=blend)
    assert whole["health"]["change_count"] >= 4, "there is something to remember"
    for stop_after in (4, 21, 36):
        stopped = tmp_path / f"stopped {stop_after}"
        with pytest.raises(InterruptedRunError):
            fly(toy_bundle, paths, stopped, Watcher(stop_after), blend=blend)
        told, rows = fly(toy_bundle, paths, stopped, blend=blend, resume=True)
        for name in (*MAPS, "quicklook.png"):
            assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (stop_after, name)
        assert untimed(stopped / "tiles.csv") == untimed(tmp_path / "whole" / "tiles.csv"), stop_after
        for part in ("result", "health", "tiles_lost"):
            assert told[part] == whole[part], (stop_after, part)
        assert len(rows) == len(whole_rows) == told["latency_ms"]["tiles"]


def test_a_run_resumes_only_with_the_limits_it_began_with(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(flight_scene(200, 300))
    output = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        fly(toy_bundle, paths, output, Watcher(5))
    with pytest.raises(ResumeError, match="health"):
        fly(toy_bundle, paths, output, resume=True, health=("ndsm.max_height_m=80",))
    with pytest.raises(ResumeError, match="health"):
        fly(toy_bundle, paths, output, resume=True, watch=False)
    fly(toy_bundle, paths, output, resume=True)


def test_limits_given_on_the_command_line_replace_the_bundles(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(flight_scene(200, 300))
    told, rows = fly(toy_bundle, paths, tmp_path / "out", health=("ndsm.max_height_m=5",))
    assert told["health"]["limits"]["ndsm"]["max_height_m"] == 5
    assert {row.verdicts[Sensor.NDSM].fault for row in rows} >= {Fault.OUT_OF_RANGE}


def test_a_paced_run_counts_what_is_later_than_its_deadline(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(flight_scene(200, 300))
    began = time.monotonic()
    told, rows = fly(toy_bundle, paths, tmp_path / "out", rate_hz=60.0, deadline_ms=1e-3)
    assert time.monotonic() - began >= (len(rows) - 1) / 60
    assert told["pace"] == {"rate_hz": 60.0, "when_behind": "block"}
    assert told["deadline"] == {"limit_ms": 1e-3, "misses": len(rows)}
    calm, _ = fly(toy_bundle, paths, tmp_path / "calm", rate_hz=60.0, deadline_ms=1e6)
    assert calm["deadline"]["misses"] == 0
    for name in MAPS:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


class Slow(Faulty):
    """A real backend that takes its time."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self._pool = ThreadPoolExecutor(1)

    def submit(self, scenario, inputs):
        def late():
            time.sleep(0.03)
            return self.inner.infer(scenario, inputs)

        return self._pool.submit(late)

    def close(self) -> None:
        self._pool.shutdown()
        super().close()


def test_dropped_tiles_hold_no_data_and_are_counted(toy_bundle, write_scene, tmp_path, monkeypatch) -> None:
    opens = BackendOptions.open
    monkeypatch.setattr(BackendOptions, "open", lambda *a, **k: Slow(opens(*a, **k)))
    scene = flight_scene(330, 410)
    told, rows = fly(
        toy_bundle, write_scene(scene), tmp_path / "out", rate_hz=1000.0, when_behind="drop-oldest", deadline_ms=1e6
    )
    dropped = [row.tile for row in rows if row.skipped]
    assert told["tiles_dropped"] == told["tiles_lost"] == len(dropped) > 0
    assert len(dropped) < len(rows)
    assert [row.tile for row in rows] == list(range(told["tiling"]["tiles"]))
    assert_maps_follow_the_log(tmp_path / "out", scene, rows)
    assert told["latency_ms"]["tiles"] == len(rows) - len(dropped)


def faulty(monkeypatch, **faults: dict) -> list[Faulty]:
    """Let the named backends fail; returns those opened."""
    opened: list[Faulty] = []
    opens = BackendOptions.open

    def build(options, *arguments, **named):
        inner = opens(options, *arguments, **named)
        planned = faults.get(inner.info.name, {})
        opened.append(Faulty(inner, **planned))
        return opened[-1]

    monkeypatch.setattr(BackendOptions, "open", build)
    return opened


def test_a_backend_that_hangs_costs_time_and_no_tile(toy_bundle, write_scene, tmp_path, monkeypatch) -> None:
    opened = faulty(monkeypatch, openvino={"silent_from": 11})
    scene = flight_scene(330, 410)
    told, rows = fly(toy_bundle, write_scene(scene), tmp_path / "out", watchdog_s=0.5)
    assert_equals_oracle(tmp_path / "out", scene, set(Sensor))
    assert [row.tile for row in rows] == list(range(told["tiling"]["tiles"]))
    events = [(event["backend"], event["what"]) for event in told["backend_events"]]
    assert events[0] == ("openvino", "hung")
    assert events[-1] == ("onnxruntime", "opened")
    assert told["backend"]["name"] == "openvino"
    assert max(row.latency_ms for row in rows) >= 500
    opened[0].close()


def test_with_no_backend_left_the_run_ends_and_can_be_resumed(toy_bundle, write_scene, tmp_path, monkeypatch) -> None:
    scene = flight_scene(330, 410)
    paths = write_scene(scene)
    output = tmp_path / "out"
    faulty(monkeypatch, openvino={"fails": {15}})
    with pytest.raises(BackendError, match="no backend is left") as caught:
        fly(toy_bundle, paths, output, backend="openvino")
    assert caught.value.exit_code == 6
    assert [path.name for path in output.iterdir()] == [FOLDER]
    monkeypatch.undo()
    watcher = Watcher()
    fly(toy_bundle, paths, output, watcher, backend="openvino", resume=True)
    assert watcher.first_tile > 0
    assert_equals_oracle(output, scene, set(Sensor))


def test_a_run_that_fails_before_its_first_tile_leaves_nothing(toy_bundle, write_scene, tmp_path, monkeypatch) -> None:
    faulty(monkeypatch, onnxruntime={"fails": range(1000)})
    with pytest.raises(BackendError):
        fly(toy_bundle, write_scene(flight_scene(100, 100)), tmp_path / "out", backend="onnxruntime")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate_hz": 0.0}, "rate_hz must be a positive number, received 0"),
        ({"deadline_ms": -5.0}, "deadline_ms must be a positive number, received -5"),
        ({"watchdog_s": float("nan")}, "watchdog_s must be a positive number, received nan"),
        ({"when_behind": "drop-oldest"}, "needs rate_hz"),
        ({"watch": False, "health": ("ndsm.max_height_m=80",)}, "`health` needs .* watch=True"),
        ({"watch": False, "inject": parse_faults("rgir:dead@1")}, "`inject` needs .* watch=True"),
        ({"resume": True, "inject": parse_faults("rgir:dead@1")}, "`inject` cannot be resumed"),
        ({"inject": parse_faults("ndsm:dead@1")}, "`inject` names ndsm, but the run reads rgir"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(options, says, tmp_path) -> None:
    with pytest.raises(UsageError, match=says):
        request_for(tmp_path, {Sensor.RGIR: tmp_path}, tmp_path, **{"watch": True, **options})


def test_provenance_of_a_tile_without_any_usable_sensor_is_none(toy_bundle, write_scene, tmp_path) -> None:
    scene = flight_scene(200, 300)
    faults = parse_faults("rgir:error@3,ndsm:late@3")
    told, rows = fly(toy_bundle, write_scene(scene), tmp_path / "out", inject=faults)
    target = rows[3].target
    with rasterio.open(tmp_path / "out" / "provenance.tif") as file:
        provenance = file.read(1)
    inside = provenance[target.row : target.row + target.height, target.col : target.col + target.width]
    assert (inside == Provenance.NONE).all()
    assert rows[3].lost
    assert told["tiles_lost"] == sum(row.lost for row in rows) >= 1
    assert_maps_follow_the_log(tmp_path / "out", scene, rows)


def test_cross_fading_beside_a_tile_without_data_keeps_whole_probabilities(toy_bundle, write_scene, tmp_path) -> None:
    faults = parse_faults("ndsm:error@9-12,rgir:error@30,ndsm:late@30")
    told, rows = fly(toy_bundle, write_scene(flight_scene(330, 410)), tmp_path / "out", blend="hann", inject=faults)
    assert told["tiles_lost"] == sum(row.lost for row in rows) >= 1
    classes, confidence, provenance = read_maps(tmp_path / "out")
    mapped = provenance != Provenance.NONE
    np.testing.assert_array_equal(classes != NODATA_CLASS, mapped)
    assert confidence[mapped].min() >= 255 // 4, "of four classes the best has a quarter at least"
    target = rows[30].target
    inside = mapped[target.row : target.row + target.height, target.col : target.col + target.width]
    assert inside.any(), "the neighbours saw some of the lost tile"


def test_a_run_that_starts_over_leaves_no_report_of_the_older_one(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(flight_scene(130, 140))
    arguments = [
        "--rgir",
        str(paths[Sensor.RGIR]),
        "--ndsm",
        str(paths[Sensor.NDSM]),
        "--output",
        str(tmp_path / "out"),
    ]
    arguments += ["--bundle", str(toy_bundle.root), "--quiet"]
    assert main([*arguments, "--report"]) == 0
    assert (tmp_path / "out" / "report.html").exists()
    assert main([*arguments, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "report.html").exists()
