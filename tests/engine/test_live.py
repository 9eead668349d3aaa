"""Frames as they land in a folder: real files in stages, on a clock that the test moves."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from engine.contract.errors import InputError
from engine.contract.sensors import Sensor
from engine.health.monitor import Absent, Fault
from engine.live.folder import POLL_S, RECENT_FILES, STALLED_S, Frame, LiveFolder
from engine.live.frame_name import Pattern

WAIT_S = 0.5
BOTH = frozenset(Sensor)


def write_frame(path: Path, *, value: int = 7, driver: str = "GTiff") -> Path:
    """A small raster of the sensor that the name begins with."""
    bands, dtype = (3, "uint8") if path.name.lower().startswith("rgir") else (1, "float32")
    profile = {"count": bands, "dtype": dtype, "crs": "EPSG:2154", "transform": from_origin(650000, 6860000, 0.2, 0.2)}
    with rasterio.open(path, "w", driver=driver, height=20, width=24, **profile) as file:
        file.write(np.full((bands, 20, 24), value, dtype))
    return path


class Folder:
    """A live folder with a clock of its own; a poll takes no time, the pause before it does."""

    def __init__(self, path: Path, **options: object) -> None:
        self.path, self.now = path, 100.0
        settings = {"sensors": BOTH, "pattern": Pattern(text="{sensor}_{stamp}.tif"), "partner_wait_s": WAIT_S}
        self.live = LiveFolder(path, **(settings | options))

    def poll(self, after_s: float = POLL_S) -> list[str]:
        """Stamps of the frames that go at the next look."""
        return [frame.stamp for frame in self.frames(after_s)]

    def frames(self, after_s: float = POLL_S) -> list[Frame]:
        self.now += after_s
        return self.live.poll(self.now)

    def write(self, *names: str) -> None:
        for name in names:
            write_frame(self.path / name)

    def deliver(self, stamp: str) -> list[str]:
        """A whole frame, and the two looks it takes to see that it is."""
        self.write(f"rgir_{stamp}.tif", f"ndsm_{stamp}.tif")
        return self.poll() + self.poll()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_frame_goes_when_both_files_were_the_same_in_two_looks(folder: Folder) -> None:
    assert folder.poll() == []
    folder.write("rgir_1.tif", "ndsm_1.tif", "README.txt")
    assert folder.poll() == []
    (frame,) = folder.frames()
    assert frame.files == {Sensor.RGIR: folder.path / "rgir_1.tif", Sensor.NDSM: folder.path / "ndsm_1.tif"}
    assert (frame.stamp, frame.absent, frame.first_at, frame.available_at) == ("1", {}, folder.now, folder.now)
    assert folder.poll() == []
    assert not folder.live.waiting


def test_frames_that_lay_there_before_the_start_are_found(folder: Folder) -> None:
    for stamp in ("11", "9", "10"):
        folder.write(f"ndsm_{stamp}.tif", f"RGIR_{stamp}.tif")
    assert folder.poll() + folder.poll() == ["9", "10", "11"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_stops_short_is_not_read_until_the_rest_comes(share: float, folder: Folder) -> None:
    whole = write_frame(folder.path / "rgir.whole").read_bytes()
    folder.write("ndsm_1.tif")
    landing = folder.path / "rgir_1.tif"
    landing.write_bytes(whole[: round(share * len(whole))])
    assert [folder.poll() for _ in range(4)] == [[]] * 4  # at rest, but not whole
    with landing.open("ab") as stream:
        stream.write(whole[round(share * len(whole)) :])
    assert folder.poll() == []
    assert folder.poll() == ["1"]


def test_a_file_that_grows_in_steps_is_not_read_before_the_last(folder: Folder) -> None:
    whole = write_frame(folder.path / "rgir.whole").read_bytes()
    folder.write("ndsm_1.tif")
    with (folder.path / "rgir_1.tif").open("wb", buffering=0) as stream:
        for start in range(0, len(whole), 200):
            stream.write(whole[start : start + 200])
            assert folder.poll(WAIT_S / 100) == []
    assert folder.poll() == ["1"]


def test_a_file_that_gdal_is_writing_is_not_read_before_it_is_closed(folder: Folder) -> None:
    folder.write("ndsm_1.tif")
    profile = {"driver": "GTiff", "height": 320, "width": 256, "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:2154", "transform": from_origin(650000, 6860000, 0.2, 0.2)}
    with (
        rasterio.Env(GDAL_CACHEMAX=100_000),
        rasterio.open(folder.path / "rgir_1.tif", "w", **profile, **place) as file,
    ):
        for row in range(0, 320, 64):
            file.write(np.full((3, 64, 256), 7, np.uint8), window=Window(0, row, 256, 64))
            assert folder.poll(0.01) + folder.poll(0.01) == []
    assert folder.poll(0.01) + folder.poll(0.01) == ["1"]


def test_a_file_of_full_size_whose_content_still_changes_is_not_read(folder: Folder) -> None:
    """Some copies reserve the whole size first: only the time of the last write tells."""
    folder.write("rgir_1.tif", "ndsm_1.tif")
    for second in range(4):
        os.utime(folder.path / "rgir_1.tif", (second, second))
        assert folder.poll() == []
    assert folder.poll() == ["1"]


def test_a_file_renamed_into_place_is_taken_at_the_second_look(folder: Folder) -> None:
    write_frame(folder.path / "rgir.part"), write_frame(folder.path / "ndsm.part")
    assert folder.poll() + folder.poll() == []
    for sensor in Sensor:
        (folder.path / f"{sensor}.part").rename(folder.path / f"{sensor}_1.tif")
    assert folder.poll() == []
    assert folder.poll() == ["1"]


def test_frames_go_by_stamp_in_whatever_order_they_land(folder: Folder) -> None:
    folder.write("rgir_3.tif", "ndsm_3.tif", "rgir_10.tif")
    folder.write("ndsm_1.tif", "ndsm_2.tif", "rgir_2.tif")
    assert folder.poll() + folder.poll() == []  # 1 has begun to land
    folder.write("rgir_1.tif", "ndsm_10.tif")
    assert folder.poll() + folder.poll() == ["1", "2", "3", "10"]
    assert folder.live.arrivals.out_of_order == 0


def test_a_frame_waits_for_an_earlier_one_no_longer_than_for_a_partner(folder: Folder) -> None:
    whole = write_frame(folder.path / "rgir.whole").read_bytes()
    (folder.path / "rgir_1.tif").write_bytes(whole[:300])  # will never be finished
    assert folder.deliver("2") == []
    began = folder.now
    gone = []
    while not gone:
        gone = folder.frames()
    assert [frame.stamp for frame in gone] == ["2"]
    assert folder.now - began == pytest.approx(WAIT_S, abs=POLL_S)
    assert gone[0].available_at == began
    (folder.path / "rgir_1.tif").write_bytes(whole)
    folder.write("ndsm_1.tif")
    assert folder.poll() + folder.poll() == ["1"]
    assert folder.live.arrivals.out_of_order == 1


def test_a_frame_goes_without_a_partner_that_does_not_come(folder: Folder) -> None:
    folder.write("rgir_1.tif")
    folder.poll()
    assert folder.poll() == []
    first = folder.now
    assert folder.poll(WAIT_S - 0.01) == []
    (frame,) = folder.frames(0.3)
    assert frame.files == {Sensor.RGIR: folder.path / "rgir_1.tif"}
    assert frame.absent == {Sensor.NDSM: Absent(fault=Fault.LATE, detail="no file 500 ms after its partner")}
    assert (frame.first_at, frame.available_at) == (first, first + WAIT_S)


def test_a_partner_within_the_wait_is_paired(folder: Folder) -> None:
    folder.write("rgir_1.tif")
    assert folder.poll() + folder.poll() + folder.poll(WAIT_S - 3 * POLL_S) == []
    folder.write("ndsm_1.tif")
    assert folder.poll() == []
    (frame,) = folder.frames()
    assert set(frame.files) == BOTH
    assert frame.available_at - frame.first_at == pytest.approx(WAIT_S - POLL_S)


def test_a_partner_that_comes_late_is_counted_and_not_mapped(folder: Folder, caplog) -> None:
    folder.write("rgir_1.tif")
    folder.poll(), folder.poll()
    assert folder.poll(WAIT_S) == ["1"]
    folder.write("ndsm_1.tif")
    assert folder.poll() + folder.poll() + folder.poll(WAIT_S) == []
    assert folder.live.arrivals.late == 1
    assert "ndsm_1.tif came late: frame 1 has gone without it" in caplog.text


def test_a_partner_half_landed_at_the_deadline_is_late(folder: Folder) -> None:
    folder.write("rgir_1.tif")
    whole = write_frame(folder.path / "ndsm.whole").read_bytes()
    (folder.path / "ndsm_1.tif").write_bytes(whole[:-1])
    folder.poll(), folder.poll()
    (frame,) = folder.frames(WAIT_S)
    assert frame.absent[Sensor.NDSM].detail == "ndsm_1.tif not whole 500 ms after its partner"
    (folder.path / "ndsm_1.tif").write_bytes(whole)
    assert folder.poll() + folder.poll() + folder.poll(WAIT_S) == []
    assert folder.live.arrivals.late == 1


def test_a_file_at_rest_that_is_never_finished_is_given_up(folder: Folder) -> None:
    (folder.path / "rgir_1.tif").write_text("this is no raster")
    assert folder.poll() + folder.poll() == []
    assert folder.live.waiting
    assert folder.poll(STALLED_S) == []  # now its partner may still come
    (frame,) = folder.frames(WAIT_S)
    assert frame.files == {}
    assert frame.absent[Sensor.RGIR].fault is Fault.READ_ERROR
    assert "it does not begin as a TIFF" in frame.absent[Sensor.RGIR].detail
    assert frame.absent[Sensor.NDSM].fault is Fault.LATE
    assert folder.live.arrivals.unfinished == 1


def test_one_sensor_alone_has_no_partner_to_wait_for(tmp_path: Path) -> None:
    folder = Folder(tmp_path, sensors=frozenset({Sensor.NDSM}))
    folder.write("rgir_1.tif", "ndsm_1.tif")
    folder.poll()
    (frame,) = folder.frames()
    assert (set(frame.files), frame.absent) == ({Sensor.NDSM}, {})


def test_duplicates_are_counted_and_not_mapped(folder: Folder) -> None:
    assert folder.deliver("1") == ["1"]
    write_frame(folder.path / "again", value=9).replace(folder.path / "ndsm_1.tif")  # the same name once more
    assert folder.poll() == []
    assert folder.live.arrivals.duplicates == 1
    folder.write("RGIR_1.tif")  # the same sensor and stamp by another name
    assert folder.poll() == []
    assert folder.live.arrivals.duplicates == 2
    (folder.path / "rgir_1.tif").unlink()
    folder.poll()
    folder.write("rgir_1.tif")  # taken away and sent again
    assert folder.poll() + folder.poll() == []
    assert folder.live.arrivals.duplicates == 3
    assert folder.live.arrivals.late == 0


def test_a_duplicate_of_a_file_that_waits_for_its_partner_is_not_taken_for_it(folder: Folder) -> None:
    folder.write("rgir_1.tif")
    folder.poll(), folder.poll()
    folder.write("RGIR_1.tif")
    assert folder.poll() + folder.poll() == []
    assert folder.live.arrivals.duplicates == 1
    folder.write("ndsm_1.tif")
    folder.poll()
    (frame,) = folder.frames()
    assert frame.files[Sensor.RGIR].name == "rgir_1.tif"


def test_frames_of_an_earlier_run_are_left_alone(tmp_path: Path) -> None:
    earlier = {"1": frozenset(Sensor), "2": frozenset({Sensor.RGIR})}
    folder = Folder(tmp_path, done=earlier)
    for stamp in ("1", "2", "3"):
        folder.write(f"rgir_{stamp}.tif", f"ndsm_{stamp}.tif")
    assert folder.poll() + folder.poll() == ["3"]
    arrivals = folder.live.arrivals
    assert (arrivals.duplicates, arrivals.late, arrivals.out_of_order) == (0, 0, 0)
    folder.write("NDSM_1.tif", "NDSM_2.tif")
    folder.poll()
    assert (arrivals.duplicates, arrivals.late) == (1, 1)


# -------------------------------------------------------------------------------------------------- sidecars


def tell(path: Path, sensor: str, stamp: str, file: str) -> Path:
    path.write_text(json.dumps({"sensor": sensor, "stamp": stamp, "file": file, "gain": 1.5}))
    return path


@pytest.fixture
def by_sidecar(tmp_path: Path) -> Folder:
    return Folder(tmp_path, pattern=None)


def test_a_sidecar_vouches_for_a_file_at_first_sight(by_sidecar: Folder) -> None:
    by_sidecar.poll()
    write_frame(by_sidecar.path / "rgir-a.png", driver="PNG"), write_frame(by_sidecar.path / "ndsm-b.tif")
    assert by_sidecar.poll() + by_sidecar.poll() == []
    tell(by_sidecar.path / "a.json", "rgir", "12:00:00.5", "rgir-a.png")
    tell(by_sidecar.path / "b.json", "ndsm", "12:00:00.5", "ndsm-b.tif")
    (frame,) = by_sidecar.frames()
    assert frame.stamp == "12:00:00.5"
    assert [path.name for path in frame.files.values()] == ["rgir-a.png", "ndsm-b.tif"]


def test_a_sidecar_that_came_before_its_file_vouches_for_nothing(by_sidecar: Folder) -> None:
    tell(by_sidecar.path / "a.json", "rgir", "1", "a.tif")
    assert by_sidecar.poll() == []
    whole = write_frame(by_sidecar.path / "rgir.whole").read_bytes()
    (by_sidecar.path / "a.tif").write_bytes(whole[:400])
    assert by_sidecar.poll() + by_sidecar.poll() + by_sidecar.poll() == []
    (by_sidecar.path / "a.tif").write_bytes(whole)
    by_sidecar.poll(), by_sidecar.poll()
    assert by_sidecar.poll(WAIT_S) == ["1"]


def test_a_sidecar_whose_file_never_comes_is_given_up(by_sidecar: Folder) -> None:
    tell(by_sidecar.path / "a.json", "rgir", "1", "a.tif")
    by_sidecar.poll()
    by_sidecar.poll(STALLED_S)
    (frame,) = by_sidecar.frames(WAIT_S)
    assert "No such file" in frame.absent[Sensor.RGIR].detail


def test_a_half_written_sidecar_is_read_when_it_is_whole(by_sidecar: Folder) -> None:
    write_frame(by_sidecar.path / "rgir-a.tif")
    sidecar = tell(by_sidecar.path / "a.json", "rgir", "1", "rgir-a.tif")
    text = sidecar.read_text()
    for length in range(0, len(text), 7):
        sidecar.write_text(text[:length])
        assert by_sidecar.poll(0.01) == []
        assert not by_sidecar.live.waiting
    sidecar.write_text(text)
    assert by_sidecar.poll() == []
    assert by_sidecar.poll(WAIT_S) == ["1"]
    assert by_sidecar.live.arrivals.ignored == 0


@pytest.mark.parametrize(
    "content",
    [
        '{"sensor": "lidar", "stamp": "1", "file": "rgir-a.tif"}',
        '{"sensor": "rgir", "stamp": "../1", "file": "rgir-a.tif"}',
        '{"sensor": "rgir", "stamp": "1", "file": "../rgir-a.tif"}',
        '{"sensor": "rgir", "stamp": 1, "file": "rgir-a.tif"}',
        '{"exposure": 5}',
        "[1, 2]",
        "no JSON at all",
    ],
)
def test_a_json_file_that_is_no_sidecar_is_ignored_once(content: str, by_sidecar: Folder, caplog) -> None:
    write_frame(by_sidecar.path / "rgir-a.tif")
    (by_sidecar.path / "a.json").write_text(content)
    for _ in range(3):
        assert by_sidecar.poll(STALLED_S) == []
    assert by_sidecar.live.arrivals.ignored == 1
    assert caplog.text.count("a.json") == 1
    assert not by_sidecar.live.waiting


def test_a_sidecar_may_vouch_for_a_file_that_fits_the_pattern(folder: Folder) -> None:
    folder.write("rgir_1.tif", "ndsm_1.tif")
    (
        tell(folder.path / "rgir_1.json", "rgir", "1", "rgir_1.tif"),
        tell(folder.path / "b.json", "ndsm", "1", "ndsm_1.tif"),
    )
    assert folder.poll() == ["1"]
    assert folder.poll() == []
    assert folder.live.arrivals.duplicates == 0


def test_a_sidecar_that_contradicts_the_name_is_ignored(folder: Folder, caplog) -> None:
    folder.write("rgir_1.tif", "ndsm_1.tif")
    tell(folder.path / "rgir_1.json", "rgir", "2", "rgir_1.tif")
    assert folder.poll() + folder.poll() == ["1"]
    assert folder.live.arrivals.ignored == 1
    assert "contradicts the name of rgir_1.tif" in caplog.text


# ---------------------------------------------------------------------------------------------- the folder


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frames land in a folder; .* is none"):
        Folder(tmp_path / "nowhere")


def test_a_mount_that_goes_away_and_comes_back_delivers_each_frame_once(folder: Folder, tmp_path, caplog) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    mounted = Folder(frames)
    assert mounted.deliver("1") == ["1"]
    frames.rename(tmp_path / "away")
    assert mounted.poll() + mounted.poll() == []
    (tmp_path / "away").rename(frames)
    assert mounted.poll() == []
    assert mounted.deliver("2") == ["2"]
    assert mounted.live.arrivals.duplicates == 0
    assert caplog.text.count("cannot be looked at") == 1


def test_a_stray_raster_is_named_once(folder: Folder, caplog) -> None:
    folder.write("ndsm-1.tif", "ndsm-2.tif")
    folder.poll(), folder.poll()
    assert [r.levelno for r in caplog.records if "does not fit the pattern" in r.message] == [logging.WARNING]
    assert folder.live.arrivals.duplicates == 0


def test_hundreds_of_frames_each_go_once(folder: Folder) -> None:
    """More than are looked at again for duplicates; frames taken away meanwhile are no trouble."""
    sample = {sensor: write_frame(folder.path / f"{sensor}.whole") for sensor in Sensor}
    gone: list[str] = []
    for batch in range(0, 300, 50):
        for stamp in range(batch, batch + 50):
            for sensor, path in sample.items():
                shutil.copyfile(path, folder.path / f"{sensor}_{stamp}.tif")
        gone += folder.poll() + folder.poll()
        for stamp in range(batch, batch + 25):
            (folder.path / f"rgir_{stamp}.tif").unlink()
    assert gone == [str(stamp) for stamp in range(300)]
    assert RECENT_FILES < 300
    assert folder.live.arrivals.duplicates == 0


def test_nothing_is_opened_that_has_been_taken(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def remember(whole: Callable[[Path], str | None]) -> Callable[[Path], str | None]:
        return lambda path: asked.append(path.name) or whole(path)

    import engine.live.folder

    monkeypatch.setattr(engine.live.folder, "unfinished", remember(engine.live.folder.unfinished))
    assert folder.deliver("1") == ["1"]
    assert sorted(asked) == ["ndsm_1.tif", "rgir_1.tif"]
    folder.poll(), folder.poll()
    assert len(asked) == 2
