"""Flights over a folder of real frames: each frame's maps must be those that a run on the same two files makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from engine import demo
from engine.backends.options import BackendName
from engine.contract.bundle import Bundle
from engine.contract.errors import InputError, InterruptedRunError, OutputError, ResumeError, UsageError
from engine.contract.sensors import Scenario, Sensor
from engine.frame_log import FrameRecord, read_frame_log
from engine.health.faults import parse_faults
from engine.health.monitor import Fault, State
from engine.job import TileReport
from engine.live import folder as folder_module
from engine.live.frame_name import Pattern
from engine.observer import Observer, Observers
from engine.ownership import MARKER
from engine.plan import Plan, make_plan
from engine.rasters.georeference import gdal_environment
from engine.request import RunRequest
from engine.runner import run
from tests.engine.runs import live_request, request_for, run_told

ROOT = Path(__file__).parents[2]
MAPS = ("classes.tif", "confidence.tif", "provenance.tif", "classes.qml", "provenance.qml", "quicklook.png")
IDLE_S = 0.25
PARTNER_WAIT_MS = 150.0
"""Where a partner is missing; elsewhere nobody should be called late on a busy machine."""
OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with gdal_environment():
        yield


@pytest.fixture(scope="module")
def scene() -> dict[Sensor, NDArray[Any]]:
    """The demo scene, for its pixels are those of healthy sensors."""
    pixels = {}
    for sensor, path in demo.SCENE.items():
        with rasterio.open(path) as file:
            pixels[sensor] = file.read()
    return pixels


class Camera:
    """Writes frames cut from a scene: frame ``n`` lies ``n`` steps from the corner, all of one odd size."""

    def __init__(self, folder: Path, scene: dict[Sensor, NDArray[Any]], size: tuple[int, int] = (90, 131)) -> None:
        self.folder, self.scene, self.size = folder, scene, size
        folder.mkdir()

    def shoot(self, number: int, *sensors: Sensor) -> None:
        """Write the files of a frame, each under another name first."""
        for sensor in sensors or tuple(Sensor):
            self.write(self.folder / f"{sensor}.part", sensor, number)
            (self.folder / f"{sensor}.part").rename(self.path(sensor, number))

    def path(self, sensor: Sensor, number: int) -> Path:
        return self.folder / f"{sensor}_{number:04d}.tif"

    def write(self, path: Path, sensor: Sensor, number: int) -> None:
        height, width = self.size
        top, left = 17 * number % (512 - height), 29 * number % (512 - width)
        values = self.scene[sensor][:, top : top + height, left : left + width]
        profile = {"count": len(values), "dtype": values.dtype, "compress": "deflate", "crs": "EPSG:2154"}
        place = from_origin(650000 + 0.2 * left, 6860000 - 0.2 * top, 0.2, 0.2)
        with rasterio.open(path, "w", driver="GTiff", height=height, width=width, transform=place, **profile) as file:
            file.write(values)


@pytest.fixture
def camera(tmp_path: Path, scene: dict[Sensor, NDArray[Any]]) -> Camera:
    return Camera(tmp_path / "live", scene)


class Oracle:
    """Maps of single frames as an ordinary run on a pair of rasters makes them; each is made once."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self.known: dict[object, Path] = {}

    def maps(self, camera: Camera, number: int, *sensors: Sensor, backend: BackendName) -> Path:
        what = (number, camera.size, sensors, backend)
        if what not in self.known:
            output = self.folder / str(len(self.known))
            rasters = {sensor: camera.path(sensor, number) for sensor in sensors or tuple(Sensor)}
            run(request_for(self.bundle, rasters, output, backend=backend))
            self.known[what] = output
        return self.known[what]


@pytest.fixture(scope="module")
def oracle(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(toy_bundle, tmp_path_factory.mktemp("oracle"))


class Teller(Observer):
    """Passes on every frame."""

    def __init__(self, told: Callable[[FrameRecord], None]) -> None:
        self._told = told

    def frame_done(self, record: FrameRecord) -> None:
        self._told(record)


class Pilot(Observer):
    """Flies over what a camera wrote, and checks what comes out."""

    def __init__(self, camera: Camera, oracle: Oracle, output: Path, backend: BackendName = "onnxruntime") -> None:
        self.camera, self.oracle, self.output, self.backend = camera, oracle, output, backend
        self.bundle = oracle.bundle
        self.tiles = 0
        self.waited: list[bool] = []

    def started(self, plan: Plan, backend: object, *, first_tile: int) -> None:
        self.first_tile = first_tile

    def tile_done(self, report: object) -> None:
        self.tiles += 1

    def waiting(self, waits: bool) -> None:
        self.waited.append(waits)

    def request(self, **options: Any) -> RunRequest:
        settings = {"partner_wait_ms": 30_000.0, "idle_exit_s": IDLE_S, "backend": self.backend, **options}
        return live_request(self.bundle, self.camera.folder, self.output, **settings)

    def fly(self, frame_done: Callable[[FrameRecord], None] = lambda _: None, **options: Any) -> dict[str, Any]:
        return run_told(self.request(**options), Observers([self, Teller(frame_done)]))

    def records(self) -> list[FrameRecord]:
        return list(read_frame_log(self.output / "frames.jsonl"))

    def stamps(self) -> list[str]:
        return [record.stamp for record in self.records()]

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.output.iterdir() if path.is_dir() and path.name != ".unfinished")

    def assert_maps_equal_a_run_of_their_own(self, number: int, *sensors: Sensor) -> None:
        alone = self.oracle.maps(self.camera, number, *sensors, backend=self.backend)
        published = self.output / f"{number:04d}"
        assert sorted(path.name for path in published.iterdir()) == sorted([*MAPS, MARKER])
        for name in MAPS:
            assert (published / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.fixture
def pilot(camera: Camera, oracle: Oracle, tmp_path: Path) -> Pilot:
    return Pilot(camera, oracle, tmp_path / "maps")


def test_each_frame_gets_the_maps_of_a_run_on_its_files(pilot: Pilot, camera: Camera) -> None:
    for number in (3, 1, 2):
        camera.shoot(number)
    told = pilot.fly()
    assert pilot.stamps() == pilot.folders() == ["0001", "0002", "0003"]
    for number in (1, 2, 3):
        pilot.assert_maps_equal_a_run_of_their_own(number)
    assert json.loads(json.dumps(told)) == json.loads((pilot.output / "run.json").read_text())
    assert told["ended"] == "idle"
    assert (told["frames"]["done"], told["frames"]["mapped"], told["tiles_lost"]) == (3, 3, 0)
    assert told["result"]["provenance_pixels"]["full"] == 3 * 90 * 131
    assert pilot.waited[0] is True
    assert pilot.waited[-1] is False
    rows = (pilot.output / "tiles.csv").read_text().splitlines()
    assert len(rows) - 1 == pilot.tiles == sum(record.tiles for record in pilot.records())


SOURCE_OF_FRAMES = {"live", "ended"}
"""What run.json says of where its frames came from."""


def untimed(told: Any) -> Any:
    """Without what names a file or a moment, and without times and what is derived from them."""
    if isinstance(told, dict):
        drop = ("_utc", "_s", "_ms", "_per_s", "_mib")
        kept = {name: each for name, each in told.items() if not name.endswith(drop) and name not in ("path", "frame")}
        return {name: untimed(each) for name, each in kept.items()}
    return [untimed(each) for each in told] if isinstance(told, list) else told


def fields_of(told: Any) -> Any:
    """The names of all fields, at every depth."""
    return {name: fields_of(each) for name, each in told.items()} if isinstance(told, dict) else None


@pytest.mark.parametrize("watch", [True, False])
def test_a_raster_is_a_flight_of_one_frame(watch: bool, pilot: Pilot, camera: Camera, tmp_path: Path) -> None:
    """run.json of the same pair of files, flown and run: one schema, the same values but for times and names."""
    camera.shoot(1)
    paths = {sensor: camera.path(sensor, 1) for sensor in Sensor}
    options = {"watch": watch, "backend": pilot.backend, "deadline_ms": 60_000.0}
    if watch:
        options["inject"] = parse_faults("ndsm:late@2-3")
    flown = pilot.fly(**options)
    ran = run_told(request_for(pilot.bundle, paths, tmp_path / "raster", **options))
    assert flown["health"]["change_count"] == (1 if watch else 0)
    assert flown.keys() == ran.keys()
    parts = flown.keys() - SOURCE_OF_FRAMES
    assert fields_of({name: flown[name] for name in parts}) == fields_of({name: ran[name] for name in parts})
    assert untimed({name: flown[name] for name in parts}) == untimed({name: ran[name] for name in parts})
    assert (flown["ended"], ran["ended"]) == ("idle", "complete")
    assert ran["live"] is None
    for name in MAPS:
        assert (pilot.output / "0001" / name).read_bytes() == (tmp_path / "raster" / name).read_bytes(), name
    assert set(flown["performance"]["stages_ms"]) == {"wait", "read", "queue", "infer", "write"}


def test_a_frame_that_lands_during_the_flight_is_mapped_and_timed(pilot: Pilot, camera: Camera) -> None:
    camera.shoot(1)

    def next_frame(record: FrameRecord) -> None:
        if record.stamp < "0004":
            camera.shoot(int(record.stamp) + 1)

    pilot.fly(next_frame)
    assert pilot.stamps() == ["0001", "0002", "0003", "0004"]
    for record in pilot.records():
        assert (record.scenario, record.absent, record.mapped) == (Scenario.FULL, {}, True)
        assert record.files == {sensor: f"{sensor}_{record.stamp}.tif" for sensor in Sensor}
        assert all(verdict.state is State.ALIVE for verdict in record.verdicts.values())
        assert 0 < record.latency_ms < 60_000


def test_a_tile_is_reported_when_it_is_done_and_not_when_the_next_one_comes(pilot: Pilot, camera: Camera) -> None:
    """Who watches for signs of life must not wait for the next frame."""
    camera.size = (40, 50)  # a single tile
    camera.shoot(1)

    class Photographer(Observer):
        def tile_done(self, report: TileReport) -> None:
            if report.frame == "0003":
                raise KeyboardInterrupt
            camera.shoot(int(report.frame) + 1)

    with pytest.raises(InterruptedRunError):
        run(pilot.request(idle_exit_s=60.0), Photographer())
    assert pilot.stamps() == ["0001", "0002", "0003"]


@pytest.mark.parametrize("alive", list(Sensor))
def test_a_frame_without_its_partner_is_mapped_from_the_one_sensor(alive: Sensor, pilot: Pilot, camera: Camera) -> None:
    camera.shoot(1)
    camera.shoot(2, alive)
    (dead,) = set(Sensor) - {alive}

    def late_partner(record: FrameRecord) -> None:
        if record.stamp == "0002":
            camera.shoot(2, dead)

    told = pilot.fly(late_partner, partner_wait_ms=PARTNER_WAIT_MS)
    pilot.assert_maps_equal_a_run_of_their_own(1)
    _, record = pilot.records()
    assert record.absent[dead].fault is record.verdicts[dead].fault is Fault.LATE
    assert record.verdicts[dead].state is State.DEAD
    assert record.partner_wait_ms == pytest.approx(PARTNER_WAIT_MS)
    assert told["frames"]["without"] == {alive: 0, dead: 1}
    assert told["arrivals"]["late"] == 1
    assert told["health"]["faults"][dead]["late"] == record.tiles
    # its file is there now, so the oracle must be told which one counts
    pilot.assert_maps_equal_a_run_of_their_own(2, alive)


def test_a_sensor_that_was_late_is_held_back_until_it_has_been_good(pilot: Pilot, camera: Camera) -> None:
    """Health is watched across frames: one tile each, so that frames count as tiles."""
    camera.size = (40, 50)
    camera.shoot(1, Sensor.RGIR)
    for number in range(2, 7):
        camera.shoot(number)
    pilot.fly(partner_wait_ms=PARTNER_WAIT_MS)
    scenarios = [record.scenario for record in pilot.records()]
    assert scenarios[:2] == [Scenario.MISSING_NDSM, Scenario.MISSING_NDSM]
    assert scenarios[-1] is Scenario.FULL
    assert pilot.records()[1].verdicts[Sensor.NDSM].recovering


def test_a_file_that_does_not_open_leaves_its_frame_to_the_other_sensor(pilot: Pilot, camera: Camera) -> None:
    """A whole TIFF with the wrong number of bands, one that lies elsewhere, and one whose pixels are damaged."""
    for number in (1, 2, 3, 4):
        camera.shoot(number)
    camera.write(camera.path(Sensor.RGIR, 1), Sensor.NDSM, 1)
    with rasterio.open(camera.path(Sensor.NDSM, 2), "r+") as file:
        file.transform = from_origin(0, 0, 0.2, 0.2)
    with camera.path(Sensor.NDSM, 3).open("r+b") as stream:
        stream.seek(-3000, os.SEEK_END)
        stream.write(bytes(2000))
    told = pilot.fly(watch=False)
    first, second, third, fourth = pilot.records()
    assert "3 band" in first.absent[Sensor.RGIR].detail
    assert "overlap" in second.absent[Sensor.NDSM].detail
    assert third.absent == fourth.absent == {}
    assert third.inferences[Scenario.MISSING_NDSM] > 0
    assert (fourth.scenario, told["tiles_lost"]) == (Scenario.FULL, 0)
    pilot.assert_maps_equal_a_run_of_their_own(1, Sensor.NDSM)
    pilot.assert_maps_equal_a_run_of_their_own(2, Sensor.RGIR)
    pilot.assert_maps_equal_a_run_of_their_own(4)


def test_a_frame_of_which_nothing_can_be_read_is_counted_and_the_flight_goes_on(pilot: Pilot, camera: Camera) -> None:
    for number in (1, 2):
        camera.shoot(number)
    for sensor, other in zip(Sensor, reversed(Sensor), strict=True):
        camera.write(camera.path(sensor, 1), other, 1)
    told = pilot.fly()
    lost, good = pilot.records()
    assert (lost.mapped, lost.scenario, lost.tiles, set(lost.absent)) == (False, None, 1, set(Sensor))
    assert {verdict.fault for verdict in lost.verdicts.values()} == {Fault.READ_ERROR}
    assert good.mapped
    assert pilot.folders() == ["0002"]
    assert told["tiles_lost"] >= 1


def test_frames_of_one_flight_may_have_any_size(pilot: Pilot, camera: Camera) -> None:
    sizes = [(64, 1), (1, 1), (64, 64), (150, 200)]
    for number, camera.size in enumerate(sizes):
        camera.shoot(number)
    pilot.fly(watch=False)
    assert pilot.stamps() == ["0000", "0001", "0002", "0003"]
    for number, camera.size in enumerate(sizes):
        pilot.assert_maps_equal_a_run_of_their_own(number)


def test_one_sensor_alone_waits_for_nothing(pilot: Pilot, camera: Camera) -> None:
    camera.shoot(1)
    told = pilot.fly(sensors=frozenset({Sensor.RGIR}), partner_wait_ms=60_000.0)
    assert told["result"]["inferences"]["missing_ndsm"] == told["performance"]["tiles"]
    pilot.assert_maps_equal_a_run_of_their_own(1, Sensor.RGIR)


def test_frames_that_come_too_fast_are_dropped_whole_and_counted(pilot: Pilot, camera: Camera) -> None:
    for number in range(1, 8):
        camera.shoot(number)
    told = pilot.fly(when_behind="drop-oldest")
    records = pilot.records()
    assert [record.stamp for record in records] == [f"{number:04d}" for number in range(1, 8)]
    assert [record.dropped for record in records] == [True] * 5 + [False] * 2
    assert pilot.folders() == ["0006", "0007"]
    assert (told["frames"]["dropped"], told["tiles_dropped"]) == (5, 5)


def test_sidecars_name_frames_as_they_like(pilot: Pilot, camera: Camera) -> None:
    for number, stamp in ((2, "12:00:01"), (1, "12:00:00.5")):
        camera.shoot(number)
        for sensor in Sensor:
            told = {"sensor": sensor.value, "stamp": stamp, "file": camera.path(sensor, number).name}
            (camera.folder / f"{sensor}-{number}.json").write_text(json.dumps(told))
    pilot.fly(pattern=None)
    assert pilot.stamps() == ["12:00:00.5", "12:00:01"]


def test_injected_faults_are_counted_over_frames(pilot: Pilot, camera: Camera) -> None:
    for number in range(6):
        camera.shoot(number)
    tiles_per_frame = plan_tiles(camera.size, pilot.bundle)
    first = 3 * tiles_per_frame
    told = pilot.fly(inject=parse_faults(f"ndsm:dead@{first}-{first + tiles_per_frame - 1}"))
    (outcome,) = told["injected"]["outcomes"]
    assert (outcome["detected"], outcome["delay_tiles"]) == (True, 0)
    assert told["injected"]["false_alarms"] == {"rgir": 0, "ndsm": 0}
    record = pilot.records()[3]
    assert (record.scenario, record.inferences) == (Scenario.MISSING_NDSM, {Scenario.MISSING_NDSM: tiles_per_frame})
    assert [each.scenario for each in pilot.records()[:3]] == [Scenario.FULL] * 3


def plan_tiles(size: tuple[int, int], bundle: Bundle) -> int:
    stride = bundle.manifest.tile_px - 2 * bundle.manifest.halo_px
    return int(np.prod([max(1, -(-(side - 2 * bundle.manifest.halo_px) // stride)) for side in size]))


# ------------------------------------------------------------------------------------------ stopping and resuming


def steady(record: FrameRecord) -> dict[str, Any]:
    """A record without its timings."""
    return {name: value for name, value in vars(record).items() if not name.endswith("_ms")}


def assert_equal_flights(one: Pilot, other: Pilot) -> None:
    assert [steady(record) for record in one.records()] == [steady(record) for record in other.records()]
    assert one.folders() == other.folders()
    for stamp in one.folders():
        for name in MAPS:
            assert (one.output / stamp / name).read_bytes() == (other.output / stamp / name).read_bytes(), (stamp, name)
    runs = [json.loads((each.output / "run.json").read_text()) for each in (one, other)]
    assert runs[0]["result"] == runs[1]["result"]
    assert {**runs[0]["health"]} == {**runs[1]["health"]}
    rows = [
        [line.split(",")[:13] for line in (each.output / "tiles.csv").read_text().splitlines()] for each in (one, other)
    ]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def whole(scene: dict[Sensor, NDArray[Any]], oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Pilot:
    """A flight of seven frames that nothing stopped, a late partner and a sensor held back in it."""
    folder = tmp_path_factory.mktemp("whole")
    camera = Camera(folder / "live", scene)
    for number in range(7):
        camera.shoot(number, *([Sensor.RGIR] if number == 2 else []))
    whole = Pilot(camera, oracle, folder / "maps", backend="openvino")
    with gdal_environment():
        whole.fly(partner_wait_ms=PARTNER_WAIT_MS)
    return whole


@pytest.fixture
def again(whole: Pilot, tmp_path: Path) -> Pilot:
    """The same flight once more."""
    return Pilot(whole.camera, whole.oracle, tmp_path / "maps", backend=whole.backend)


@pytest.mark.parametrize("tiles", [1, 14])
def test_a_flight_broken_off_anywhere_resumes_to_the_same_maps(tiles: int, again: Pilot, whole: Pilot) -> None:
    class Impatient(Observer):
        def tile_done(self, report: object) -> None:
            nonlocal tiles
            tiles -= 1
            if tiles == 0:
                raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="resume=True"):
        run(again.request(partner_wait_ms=PARTNER_WAIT_MS), Impatient())
    assert not (again.output / "run.json").exists()
    before = again.stamps()
    told = again.fly(resume=True, partner_wait_ms=PARTNER_WAIT_MS)
    assert told["resumed_after_frames"] == len(before)
    assert_equal_flights(again, whole)


SCRIPT = """
import json, sys
from pathlib import Path
from engine.rasters.georeference import gdal_environment
from engine.runner import run
from tests.engine.runs import live_request
from tests.engine.test_live_run import Teller

options = json.loads(sys.argv[1])
paths = {name: Path(options.pop(name)) for name in ("folder", "bundle", "output")}

def tell(record):
    print(record.stamp, flush=True)
    if sys.argv[2] == "ask":
        sys.stdin.readline()

with gdal_environment():
    run(live_request(**paths, **options), Teller(tell))
"""


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Begins a pilot's flight in a process of its own; it prints the stamp of each frame, and may wait for a line."""
    running: list[subprocess.Popen[str]] = []

    def start(pilot: Pilot, *, ask: bool = False, **options: Any) -> subprocess.Popen[str]:
        paths = {"folder": pilot.camera.folder, "bundle": pilot.bundle.root, "output": pilot.output}
        settings = {"partner_wait_ms": 30_000.0, "backend": pilot.backend, "precision": "fp32", **options}
        arguments = json.dumps({**{name: str(path) for name, path in paths.items()}, **settings})
        command = [sys.executable, "-c", SCRIPT, arguments, "ask" if ask else "go"]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_flight_killed_twice_resumes_to_the_same_maps(again: Pilot, whole: Pilot, start: Start) -> None:
    """No last word: the folder, the logs and the journal are as the kill left them."""
    for kill_at in ("0001", "0004"):
        process = start(again, resume=True, partner_wait_ms=PARTNER_WAIT_MS)
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == kill_at:
                process.kill()
                break
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, stderr
        for folder in again.folders():  # whole or not there
            assert sorted(path.name for path in (again.output / folder).iterdir()) == sorted([*MAPS, MARKER])
    told = again.fly(resume=True, partner_wait_ms=PARTNER_WAIT_MS)
    assert told["resumed_after_frames"] >= 4
    assert_equal_flights(again, whole)
    again.assert_maps_equal_a_run_of_their_own(1)
    again.assert_maps_equal_a_run_of_their_own(2, Sensor.RGIR)


def test_sigterm_ends_the_flight_cleanly_after_the_frame_under_way(pilot: Pilot, camera: Camera, start: Start) -> None:
    for number in range(20):
        camera.shoot(number)
    process = start(pilot, ask=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0000\n"
    process.terminate()
    _, stderr = process.communicate("\n" * 20, timeout=60)
    assert process.returncode == 0, stderr
    run = json.loads((pilot.output / "run.json").read_text())
    assert run["ended"] == "SIGTERM"
    assert pilot.stamps() == pilot.folders() == [f"{number:04d}" for number in range(run["frames"]["done"])]
    assert 0 < run["frames"]["done"] < 20
    for record in pilot.records():
        assert record.provenance_pixels == {"none": 0, "full": 90 * 131, "missing_ndsm": 0, "missing_rgir": 0}


def test_a_flight_that_waits_for_frames_ends_at_once_when_told_to(pilot: Pilot, camera: Camera, start: Start) -> None:
    camera.size = (40, 50)  # a single tile
    camera.shoot(1)
    process = start(pilot)
    assert process.stdout is not None
    assert process.stdout.readline() == "0001\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert json.loads((pilot.output / "run.json").read_text())["ended"] == "SIGINT"
    camera.shoot(2)
    told = pilot.fly(resume=True)
    assert (pilot.stamps(), told["resumed_after_frames"]) == (["0001", "0002"], 1)


@pytest.mark.parametrize("left", [[], [".unfinished"]])
def test_resume_begins_where_there_is_nothing_yet(left: list[str], pilot: Pilot, camera: Camera) -> None:
    """So that a service can be started and restarted with one command, killed at the very start or not."""
    for name in left:
        (pilot.output / name).mkdir(parents=True)
    camera.shoot(1)
    told = pilot.fly(resume=True)
    assert (pilot.stamps(), told["resumed_after_frames"]) == (["0001"], None)


def test_a_torn_frame_under_way_is_begun_anew(pilot: Pilot, camera: Camera) -> None:
    """As a power cut leaves it: names are there, and not all that was written."""
    camera.shoot(1)
    pilot.fly()
    torn = pilot.output / ".unfinished" / "frame"
    (torn / "maps").mkdir(parents=True)
    for name in ("classes.spool.tif", "maps/classes.tif", "maps/stray"):
        (torn / name).write_bytes(b"II*\0")
    camera.shoot(2)
    pilot.fly(resume=True)
    pilot.assert_maps_equal_a_run_of_their_own(2)


def test_resume_refuses_another_flight(pilot: Pilot, camera: Camera) -> None:
    camera.shoot(1)
    pilot.fly()
    with pytest.raises(ResumeError, match="halo_px was 8, now 4"):
        pilot.fly(resume=True, halo_px=4)
    records = pilot.output / "frames.jsonl"
    (pilot.output / ".unfinished").rename(pilot.output / "away")
    with pytest.raises(ResumeError, match="journal.json does not exist"):
        pilot.fly(resume=True)
    (pilot.output / "away").rename(pilot.output / ".unfinished")
    records.write_text("{}\n")
    with pytest.raises(ResumeError, match=r"frames.jsonl, which .* is missing or damaged"):
        pilot.fly(resume=True)
    with pytest.raises(OutputError, match=r"frames.jsonl, line 1 is no frame's record"):
        pilot.fly(overwrite=True)
    records.unlink()
    with pytest.raises(ResumeError, match=r"frames.jsonl, which .* is missing or damaged"):
        pilot.fly(resume=True)
    assert pilot.folders() == ["0001"]


def test_maps_that_exist_are_kept_unless_overwrite_is_given(pilot: Pilot, camera: Camera) -> None:
    camera.shoot(1)
    pilot.fly()
    (pilot.output / "notes").mkdir()
    with pytest.raises(OutputError, match="overwrite=True"):
        pilot.fly()
    camera.shoot(2)
    camera.path(Sensor.RGIR, 1).unlink()
    camera.path(Sensor.NDSM, 1).unlink()
    pilot.fly(overwrite=True)
    assert pilot.folders() == ["0002", "notes"]
    assert pilot.stamps() == ["0002"]


def test_a_frame_whose_maps_have_no_place_is_left_out_and_the_flight_goes_on(pilot: Pilot, camera: Camera) -> None:
    """What lies where the maps should go is not ours: neither a file, nor a folder, nor the landing folder itself."""
    for number in (1, 2, 3):
        camera.shoot(number)
    pilot.output.mkdir()
    (pilot.output / "0001").write_text("in the way")
    (pilot.output / "0002").mkdir()
    (pilot.output / "0002" / "photo.jpg").write_text("mine")
    told = pilot.fly()
    assert pilot.stamps() == ["0003"]
    assert told["arrivals"]["quarantined"] == 4
    assert (pilot.output / "0001").read_text() == "in the way"
    assert [path.name for path in (pilot.output / "0002").iterdir()] == ["photo.jpg"]
    (pilot.output / "0001").unlink()
    pilot.fly(resume=True)
    assert sorted(pilot.stamps()) == ["0001", "0003"]


def test_nothing_that_lands_ends_the_flight(pilot: Pilot, camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that may lie in the folder, then a frame: it is mapped, and nothing waits for the rest."""
    monkeypatch.setattr(folder_module, "STALLED_S", 0.3)
    folder = camera.folder
    (folder / "bad.json").write_bytes(b"\xff\xfe{")
    (folder / "deep.json").write_bytes(b"[" * 100_000)
    (folder / "nul.json").write_text(json.dumps({"sensor": "rgir", "stamp": "n", "file": "a\0b"}))
    (folder / "long.json").write_text(json.dumps({"sensor": "rgir", "stamp": "é" * 199, "file": "x.tif"}))
    (folder / "up.json").write_text(json.dumps({"sensor": "rgir", "stamp": "x", "file": "../x.tif"}))
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "rgir_loop.tif").symlink_to("rgir_loop.tif")
    (folder / "rgir_link.tif").symlink_to("/etc/passwd")
    os.mkfifo(folder / "rgir_pipe.tif")
    os.mkfifo(folder / "pipe.tif")
    (folder / "pipe.json").write_text(json.dumps({"sensor": "rgir", "stamp": "pipe", "file": "pipe.tif"}))
    (folder / "vrt.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    (folder / "vrt.json").write_text(json.dumps({"sensor": "rgir", "stamp": "vrt", "file": "vrt.tif"}))
    (folder / os.fsdecode(b"rgir_\xff.tif")).write_bytes(b"II*\0")
    for stamp in ("run.json", "tiles.csv", "FRAMES.JSONL"):
        camera.write(folder / f"rgir_{stamp}.tif", Sensor.RGIR, 5)
    with rasterio.open(  # claims more pixels than any frame has
        folder / "rgir_giant.tif", "w", driver="GTiff", width=200_000, height=200_000, count=3, dtype="uint8",
        tiled=True, blockxsize=65536, blockysize=65536, compress="deflate", SPARSE_OK=True, BIGTIFF="YES",
    ):  # fmt: skip
        pass
    (folder / "giant.json").write_text(json.dumps({"sensor": "rgir", "stamp": "giant", "file": "rgir_giant.tif"}))
    camera.shoot(1)
    told = pilot.fly(partner_wait_ms=200.0, idle_exit_s=1.0)
    mapped = [record.stamp for record in pilot.records() if record.mapped]
    assert mapped == ["0001"]
    assert told["arrivals"]["quarantined"] == 3
    assert sorted(record.stamp for record in pilot.records() if not record.mapped) == ["giant", "pipe", "vrt"]
    again = pilot.fly(resume=True, partner_wait_ms=200.0, idle_exit_s=1.0)
    assert again["frames"]["mapped"] == 1


def test_files_beside_a_frame_are_not_looked_at(pilot: Pilot, camera: Camera) -> None:
    """GDAL would take heights ten times as large from an .aux.xml, and no pixel for valid from an .msk."""
    camera.shoot(1)
    height, width = camera.size
    scale = '<PAMDataset><PAMRasterBand band="1"><Scale>10</Scale></PAMRasterBand></PAMDataset>'
    (camera.folder / "ndsm_0001.tif.aux.xml").write_text(scale)
    with rasterio.open(camera.path(Sensor.NDSM, 1)) as file:
        assert file.scales == (10.0,)
    with rasterio.open(
        camera.folder / "rgir_0001.tif.msk", "w", driver="GTiff", height=height, width=width, count=1, dtype="uint8"
    ) as mask:
        mask.write(np.zeros((1, height, width), np.uint8))
    pilot.fly()
    with rasterio.open(pilot.output / "0001" / "provenance.tif") as file:
        assert (file.read(1) == 1).all()
    for beside in camera.folder.glob("*.tif.*"):
        beside.unlink()
    pilot.assert_maps_equal_a_run_of_their_own(1)


def test_overwrite_deletes_what_is_ours_and_nothing_else(pilot: Pilot, camera: Camera, tmp_path: Path) -> None:
    """Stamps in frames.jsonl are only text, that anybody may have written."""
    camera.shoot(1)
    pilot.fly()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (pilot.output / "0001" / "notes.txt").write_text("mine")
    (pilot.output / "0007").mkdir()
    (pilot.output / "0007" / "classes.tif").write_text("not of ours")
    log = pilot.output / "frames.jsonl"
    line = log.read_text()
    log.write_text(line + line.replace('"0001"', '"0007"'))
    pilot.fly(overwrite=True)
    assert (pilot.output / "0001" / "notes.txt").read_text() == "mine"
    assert (pilot.output / "0007" / "classes.tif").read_text() == "not of ours"
    for stamp in ("../precious", str(precious), "..", ".", "a/b", "run.json"):
        log.write_text(line.replace('"0001"', json.dumps(stamp)))
        with pytest.raises(OutputError, match="empty it yourself"):
            pilot.fly(overwrite=True)
        assert (precious / "file").read_text() == "mine"


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="open files cannot be counted here")
def test_a_flight_leaves_no_thread_and_no_open_file(pilot: Pilot, camera: Camera) -> None:
    camera.shoot(1)
    pilot.fly()  # libraries keep some threads and files for good
    camera.shoot(2)
    threads, files = set(threading.enumerate()), len(list(OPEN_FILES.iterdir()))
    told = pilot.fly(resume=True)
    assert told["frames"]["done"] == 2
    assert {thread for thread in threading.enumerate() if not thread.daemon} <= threads
    assert len(list(OPEN_FILES.iterdir())) <= files


# -------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensors": frozenset()}, "at least one sensor"),
        ({"overwrite": True, "resume": True}, "pass one of them"),
        ({"partner_wait_ms": 0.0}, "partner_wait_ms must be a positive number, received 0"),
        ({"idle_exit_s": -1.0}, "idle_exit_s must be a positive number"),
        ({"watchdog_s": float("inf")}, "watchdog_s must be a positive number"),
        ({"watch": False, "health": ("ndsm.noise=off",)}, "`health` needs sensors that are watched"),
        ({"inject": parse_faults("ndsm:dead@1"), "resume": True}, "cannot be resumed"),
        ({"inject": parse_faults("ndsm:dead@1"), "sensors": frozenset({Sensor.RGIR})}, "`inject` names ndsm"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str, pilot: Pilot) -> None:
    with pytest.raises(UsageError, match=message):
        pilot.request(**options)


def test_a_plan_says_what_would_run_and_writes_nothing(pilot: Pilot, camera: Camera) -> None:
    before = sorted(camera.folder.parent.rglob("*"))
    with ExitStack() as stack:
        request = pilot.request(pattern=Pattern(text="{stamp}-{sensor}.tif"))
        described = msgspec.json.decode(msgspec.json.encode(make_plan(request, stack).describe()))
    assert described["live"]["pattern"] == "{stamp}-{sensor}.tif"
    assert described["scenarios"] == ["full", "missing_ndsm", "missing_rgir"]
    assert json.dumps(described)
    assert sorted(camera.folder.parent.rglob("*")) == before


def test_a_folder_that_is_none_and_a_halo_too_wide_are_refused_before_anything_is_written(pilot: Pilot) -> None:
    with pytest.raises(UsageError, match="below half the tile"):
        pilot.fly(halo_px=32)
    pilot.camera.folder.rmdir()
    with pytest.raises(InputError, match="frames land in a folder; .* is none"):
        pilot.fly()
    assert not pilot.output.exists()
