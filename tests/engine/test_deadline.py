"""A raster whose server falls silent is given up in time; what else there is goes on."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.errors import RasterSilentError
from engine.contract.sensors import Sensor
from engine.deadline import Caller, DeadlineError, left_behind
from engine.frame_log import read_frame_log
from engine.frames import RasterOpener
from engine.health.monitor import Fault
from engine.journal import Journal
from engine.live.folder import LiveFolder
from engine.live.frame_name import Pattern
from engine.rasters.georeference import gdal_environment
from engine.rasters.raster import SensorRasters
from engine.runner import run
from tests.conftest import Scene, make_scene
from tests.engine.runs import Watcher, live_request, request_for, run_told

SPECS = {Sensor.RGIR: rgir_spec(), Sensor.NDSM: ndsm_spec()}
TILE_PX = 64


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    left_behind.clear()


SERVER = """
import http.server, pathlib, sys, time
folder, silence = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(200, (folder / self.path.strip("/")).read_bytes(), body=False)
    def do_GET(self):
        while silence.exists():
            time.sleep(0.1)
        content = (folder / self.path.strip("/")).read_bytes()
        first, last = self.headers.get("Range", f"bytes=0-{len(content) - 1}")[6:].split("-")
        part = content[int(first) : int(last) + 1]
        self.answer(206, part, f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
    def answer(self, code, content, range="", body=True):
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Range", range) if range else self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(content) if body else None
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""In a process of its own: while GDAL opens a file, no thread of this one runs."""


@pytest.fixture
def served(
    write_scene: Callable[[Scene], dict[Sensor, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, dict[Sensor, Path | str]]]:
    """RGIR on disk, nDSM behind a server that says nothing while the first file is there."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    paths, silence = write_scene(make_scene(1200, 500, holes=False)), tmp_path / "silence"
    command = [sys.executable, "-c", SERVER, str(tmp_path / "scene"), str(silence)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield silence, {**paths, Sensor.NDSM: f"/vsicurl/http://127.0.0.1:{port}/ndsm.tif"}
        server.kill()


def test_a_call_that_hangs_is_left_behind_and_the_next_one_is_made() -> None:
    left_behind.clear()  # another test of this process may have left a call behind
    within, forever = Caller(0.1), threading.Event()
    assert within(lambda: 7) == 7
    with pytest.raises(KeyError):
        within(lambda: {}["x"])

    def its_own() -> None:
        raise TimeoutError("of the function")

    with pytest.raises(TimeoutError, match="of the function"):
        within(its_own)
    assert not left_behind.is_set()
    with pytest.raises(DeadlineError, match=r"no answer for 0\.1 s"):
        within(forever.wait)
    assert left_behind.is_set()
    assert within(lambda: 8) == 8
    forever.set()
    within.close()


@pytest.mark.parametrize("readers", [1, 2])
def test_a_run_whose_raster_falls_silent_ends_with_what_it_has(
    served, toy_bundle, tmp_path, monkeypatch, readers
) -> None:
    silence, files = served
    monkeypatch.setattr("engine.runner.read_limit_s", lambda _: 2.0)
    request = request_for(toy_bundle, files, tmp_path / "out", watch=True, backend="onnxruntime", readers=readers)
    with (
        gdal_environment(cache_bytes=1 << 20),
        pytest.raises(RasterSilentError, match="gave no window for 2 s: see whether its disk or server answers"),
    ):
        run(request, Silences(silence, after_tiles=1))
    assert left_behind.is_set()
    assert Journal(request.output).begun


class Silences(Watcher):
    """Has the server fall silent after so many tiles."""

    def __init__(self, silence: Path, *, after_tiles: int) -> None:
        super().__init__()
        self._silence, self._after_tiles = silence, after_tiles

    def tile_done(self, report: object) -> None:
        super().tile_done(report)
        if self.tiles == self._after_tiles:
            self._silence.touch()


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """For the block: whoever opens the file waits for it, in the kernel."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # and stays so: one that comes late would end the process
    with path.open("r+b") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"this file system has no leases: {error}")
        try:
            yield
        finally:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_a_file_whose_disk_does_not_answer_is_not_opened(
    write_scene: Callable[[Scene], dict[Sensor, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_scene(make_scene(100, 100))
    opener = RasterOpener(specs=SPECS, tile_px=TILE_PX, limit_s=0.3, goes_on=True)
    with leased(paths[Sensor.NDSM]):
        with pytest.raises(RasterSilentError, match=r"ndsm\.tif cannot be opened: no answer for 0\.3 s") as caught:
            opener.open(paths)
        assert caught.value.sensor is Sensor.NDSM
        monkeypatch.setattr("engine.deadline.MOST_HANGING", 1)
        with pytest.raises(RasterSilentError, match="reads hang already"):  # no thread more is left behind
            opener.open(paths)
    RasterOpener(specs=SPECS, tile_px=TILE_PX, limit_s=10).open(paths).close()


def test_a_frame_that_hangs_in_mid_read_is_mapped_without_it_and_the_flight_goes_on(
    served, toy_bundle, tmp_path, monkeypatch
) -> None:
    """The first frame's nDSM hangs within a read."""
    silence, files = served
    landing = tmp_path / "landing"
    landing.mkdir()
    for number in range(2):
        for sensor in Sensor:
            shutil.copy(tmp_path / "scene" / f"{sensor}.tif", landing / f"{sensor}_{number:04d}.tif")
    opened = RasterOpener.open

    def open_elsewhere(self: RasterOpener, paths: Mapping[Sensor, Path]) -> SensorRasters:
        """The first frame's nDSM lies on a server, which answers no more once its header is read."""
        if paths.get(Sensor.NDSM) != landing / "ndsm_0000.tif":
            return opened(self, paths)
        rasters = opened(replace(self, drivers=None), {**paths, Sensor.NDSM: files[Sensor.NDSM]})
        silence.touch()
        return rasters

    monkeypatch.setattr(RasterOpener, "open", open_elsewhere)
    settings = {"pattern": Pattern(text="{sensor}_{stamp}.tif"), "idle_exit_s": 0.3, "partner_wait_ms": 20_000.0}
    request = live_request(
        toy_bundle, landing, tmp_path / "out", backend="onnxruntime", watchdog_s=1.0, watch=False, **settings
    )
    with gdal_environment(cache_bytes=1 << 20):
        told = run_told(request)
    frames = {record.stamp: record for record in read_frame_log(request.output / "frames.jsonl")}
    assert (told["ended"], told["arrivals"]["silent"]) == ("idle", 1)
    first, second = frames["0000"], frames["0001"]
    assert (first.verdicts[Sensor.NDSM].fault, first.mapped) == (Fault.READ_ERROR, True)
    assert first.provenance_pixels["none"] == first.provenance_pixels["missing_rgir"] == 0
    assert first.provenance_pixels["missing_ndsm"] > 0
    assert second.provenance_pixels["full"] == 1200 * 500
    assert left_behind.is_set()


def test_a_file_that_hangs_does_not_blind_a_folder(tmp_path, monkeypatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(
        "engine.live.folder.unfinished", lambda path: forever.wait() if path.name == "rgir_1.tif" else None
    )
    folder = LiveFolder(
        tmp_path,
        sensors=frozenset([Sensor.RGIR]),
        pattern=Pattern(text="{sensor}_{stamp}.tif"),
        partner_wait_s=0,
        limit_s=0.2,
    )
    for number in (1, 2):
        (tmp_path / f"rgir_{number}.tif").touch()
    first, second = [frame for now in range(3) for frame in folder.poll(float(now))]
    assert "no answer for 0.2 s" in first.absent[Sensor.RGIR].detail
    assert (second.stamp, second.absent, folder.arrivals.silent) == ("2", {}, 1)
    forever.set()
    folder.close()
