"""The live map: its pixels, its words, who may see it, and that nothing it does holds up a run."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import threading
import tomllib
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin
from rasterio.warp import transform as reproject_points
from starlette.testclient import TestClient

from engine.contract.bundle import Bundle
from engine.contract.errors import InterruptedRunError, UsageError
from engine.contract.sensors import Sensor
from engine.grid import Window
from engine.health.faults import parse_faults
from engine.observer import Observer, Observers
from engine.report.words import NOTHING
from engine.runner import run
from engine.view import address, canvas, events, messages
from engine.view.__main__ import DRIVERS, main
from engine.view.canvas import LiveCanvas
from engine.view.flight import TILES_KEPT, ShownFlight, ShownFrame
from engine.view.guard import HEADERS
from engine.view.messages import TileDone
from engine.view.observer import Outlet, Page, PageTeller
from engine.view.pixels import InputPixels
from engine.view.replay import Replay
from engine.view.web import STATIC, MapSite
from tests.conftest import make_scene
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import Watcher, live_request, request_for

MAPS = ("classes", "confidence", "provenance")
HEIGHT, WIDTH = 700, 1130
HERE = "http://127.0.0.1"
TOKEN = "a token of sixteen or more"


class Listener:
    """A run's page without the process: what it tells, and the canvas."""

    def __init__(self, output: Path) -> None:
        self.canvas, self.flight = LiveCanvas(), ShownFlight(output, identity="me")
        self.told: list[messages.Message] = []
        self.teller = PageTeller(self.canvas, self.take)

    def take(self, message: messages.Message) -> None:
        """As it comes out of the pipe."""
        self.told.append(message)
        self.flight.apply(messages.decode(messages.encode(message)))

    def browser(self, token: str | None = None) -> TestClient:
        return TestClient(MapSite(self.flight, self.canvas, None, asyncio.Event()).app(token), base_url=HERE)


@pytest.fixture(scope="module")
def flown(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Listener:
    """A watched flight in which nDSM dies and comes back, and what it told."""
    folder = tmp_path_factory.mktemp("flown")
    rasters, _ = flight_scene(HEIGHT, WIDTH)
    paths = {}
    for sensor, values in rasters.items():
        paths[sensor] = folder / f"{sensor}.tif"
        form = {"height": HEIGHT, "width": WIDTH, "count": len(values), "dtype": values.dtype}
        transform = from_origin(650000, 6860000, 0.2, 0.2)
        with rasterio.open(paths[sensor], "w", driver="GTiff", crs="EPSG:2154", transform=transform, **form) as file:
            file.write(values)
    listener = Listener(folder / "map")
    faults = parse_faults("ndsm:dead@20-29")
    run(request_for(toy_bundle, paths, folder / "map", watch=True, inject=faults), listener.teller)
    return listener


def published(output: Path, name: str) -> tuple[NDArray[np.uint8], dict[int, tuple[int, ...]] | None, int]:
    """Values, palette and nodata of a map, by rasterio."""
    with rasterio.open(output / f"{name}.tif") as file:
        return file.read(1), None if name == "confidence" else file.colormap(1), int(file.nodata)


def expected(output: Path, name: str, level: int, *, overview: bool) -> NDArray[np.uint8]:
    """A map as RGBA: the file's own overview of that level, or every n-th pixel."""
    values, palette, nodata = published(output, name)
    values = values[:: 1 << level, :: 1 << level]
    if overview and level:
        with rasterio.open(output / f"{name}.tif", overview_level=level - 1) as file:
            values = file.read(1)
    table = np.array([(*(palette[each][:3] if palette else (each,) * 3), 255) for each in range(256)], np.uint8)
    table[nodata] = (*table[nodata][:3], 0)
    return table[values]


def shown(browser: TestClient, name: str, level: int) -> NDArray[np.uint8]:
    """A whole map as a browser puts it together from squares."""
    rows, cols = (-(-side // (512 << level)) for side in (HEIGHT, WIDTH))
    whole = np.zeros((512 * rows, 512 * cols, 4), np.uint8)
    for y in range(rows):
        for x in range(cols):
            answer = browser.get(f"/tiles/0/{name}/{level}/{x}/{y}")
            assert answer.status_code == 200
            image = Image.open(io.BytesIO(answer.content)).convert("RGBA")
            whole[512 * y : 512 * y + 512, 512 * x : 512 * x + 512] = np.asarray(image)
    return whole


def same_pixels(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> bool:
    """All that can be seen is equal, and nothing can be seen beyond the map."""
    height, width = wanted.shape[:2]
    inside, seen = found[:height, :width], wanted[..., 3] == 255
    beyond = found[height:, :, 3].any() or found[:, width:, 3].any()
    return bool((inside[seen] == wanted[seen]).all() and (inside[~seen][:, 3] == 0).all() and not beyond)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", MAPS)
def test_pixels_of_squares_are_those_of_the_published_map(flown: Listener, name: str, level: int) -> None:
    browser = TestClient(MapSite(Replay(flown.flight.output), None, None, asyncio.Event()).app(None), base_url=HERE)
    assert same_pixels(shown(browser, name, level), expected(flown.flight.output, name, level, overview=True))


@pytest.mark.parametrize("name", MAPS)
def test_pixels_of_a_map_that_grows_are_those_it_is_published_with(
    flown: Listener, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flown.flight.frames[0], "published", False)  # as it was until the last tile
    for level in (0, 2):
        found = shown(flown.browser(), name, level)
        assert same_pixels(found, expected(flown.flight.output, name, level, overview=False))


def test_a_map_larger_than_the_canvas_shows_every_nth_pixel(
    toy_bundle: Bundle, write_scene: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvas, "CANVAS_PX", 9000)
    listener = Listener(tmp_path / "map")
    run(request_for(toy_bundle, write_scene(make_scene(150, 211)), tmp_path / "map"), listener.teller)
    frame, whole = listener.flight.frames[0], Window(row=0, col=0, height=150, width=211)
    assert frame.shape.step == 2
    for layer, name in enumerate(MAPS):
        values = published(tmp_path / "map", name)[0]
        np.testing.assert_array_equal(listener.canvas.read(layer, frame.shape, whole, 4), values[::4, ::4])
        between = listener.canvas.read(layer, frame.shape, whole, 1)
        np.testing.assert_array_equal(between, values[::2, ::2].repeat(2, 0)[:150].repeat(2, 1)[:, :211])


def test_a_resumed_run_shows_what_was_mapped_before(
    toy_bundle: Bundle, write_scene: Callable[..., Any], tmp_path: Path
) -> None:
    paths = write_scene(make_scene(190, 211))
    with pytest.raises(InterruptedRunError):
        run(request_for(toy_bundle, paths, tmp_path / "map"), Watcher(stop_after=9))
    listener = Listener(tmp_path / "map")
    run(request_for(toy_bundle, paths, tmp_path / "map", resume=True), listener.teller)
    assert listener.flight.started is not None
    assert listener.flight.started.first_tile > 0, "no row was whole when the run was stopped"
    layers = listener.canvas.layers(listener.flight.frames[0].shape)
    for layer, name in zip(layers, MAPS, strict=True):
        np.testing.assert_array_equal(layer, published(tmp_path / "map", name)[0])


def test_every_frame_of_a_live_flight_is_on_the_page(
    toy_bundle: Bundle, write_scene: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "landing").mkdir()
    for number, size in enumerate(((90, 131), (70, 100), (90, 131))):
        for sensor, path in write_scene(make_scene(*size, seed=number)).items():
            path.rename(tmp_path / "landing" / f"{sensor}_{number}.tif")
    listener = Listener(tmp_path / "map")
    run(live_request(toy_bundle, tmp_path / "landing", tmp_path / "map", idle_exit_s=0.25), listener.teller)
    told, replayed = listener.flight.snapshot(), Replay(tmp_path / "map").snapshot()
    assert [each["stamp"] for each in told["frames"]] == ["0", "1", "2"]
    assert all(each["published"] for each in told["frames"])
    assert told["now"]["frames"]["done"] == 3
    shape = ("number", "stamp", "height", "width", "transform", "published")
    assert [[each[key] for key in shape] for each in json.loads(json.dumps(told["frames"]))] == [
        [each[key] for key in shape] for each in json.loads(json.dumps(replayed["frames"]))
    ]
    seen = {each.frame: 0 for each in listener.flight.tiles}
    for each in listener.flight.tiles:
        seen[each.frame] += sum(window.pixels for window in each.tile.painted)
    assert seen == {0: 90 * 131, 1: 70 * 100, 2: 90 * 131}
    for number in range(3):
        values = published(tmp_path / "map" / str(number), "classes")[0]
        answer = listener.browser().get(f"/tiles/{number}/classes/0/0/0")
        image = np.asarray(Image.open(io.BytesIO(answer.content)))
        np.testing.assert_array_equal(image[: values.shape[0], : values.shape[1]], values)
    again = MapSite(Replay(tmp_path / "map"), None, DRIVERS, asyncio.Event())
    later = TestClient(again.app(None), base_url=HERE)
    for number in range(3):
        for sensor in Sensor:  # what lay under a frame in flight lies there afterwards
            pictures = [each.get(f"/tiles/{number}/{sensor}/0/0/0") for each in (listener.browser(), later)]
            assert [each.status_code for each in pictures] == [200, 200]
            assert pictures[0].content == pictures[1].content
    (tmp_path / "landing" / "rgir_1.tif").unlink()
    assert Replay(tmp_path / "map").snapshot()["frames"][1]["inputs"] == ["ndsm"]


def test_a_switch_is_told_with_its_place_and_reason(flown: Listener) -> None:
    told = flown.flight.snapshot()
    first = told["switches"][0]
    tile = next(each for each in flown.told if isinstance(each, TileDone) and each.switched)
    assert (first["row"], first["col"]) == (tile.target.row, tile.target.col)
    assert told["words"]["engines"][first["engine"]]["name"] == "RGIR only"
    assert first["why"].startswith("nDSM dead (no data")
    assert "ndsm valid in 100 %" in told["switches"][1]["why"]
    assert told["now"]["phase"] == "finished"
    heights = told["now"]["sensors"][1]
    assert heights["sensor"] == "ndsm"
    assert heights["tiles"]["dead"] == 10
    assert told["run"]["title"] == "map"


def test_a_finished_run_tells_what_it_told_in_flight(flown: Listener) -> None:
    live, replayed = flown.flight.snapshot(), Replay(flown.flight.output).snapshot()
    place = ("number", "frame", "row", "col", "height", "width", "engine")
    assert [[each[key] for key in place] for each in live["switches"]] == [
        [each[key] for key in place] for each in replayed["switches"]
    ]
    for column in ("number", "engine", "rgir", "ndsm", "latency_ms"):
        np.testing.assert_allclose(replayed["tiles"][column], live["tiles"][column], atol=0.06)
    assert NOTHING not in replayed["tiles"]["engine"]
    for now in (live["now"], replayed["now"]):
        assert now["tiles"] == {"done": len(live["tiles"]["number"]), "planned": len(live["tiles"]["number"])} | {
            "lost": 0,
            "dropped": 0,
        }
    assert [each["tiles"] for each in live["now"]["sensors"]] == [each["tiles"] for each in replayed["now"]["sensors"]]


def test_inputs_lie_under_the_map_pixel_by_pixel(flown: Listener) -> None:
    browser, seen = flown.browser(), flown.flight.output.parent / "rgir.tif"
    with rasterio.open(seen) as file:
        wanted = np.moveaxis(file.read(), 0, 2)
    corner = browser.get("/tiles/0/rgir/0/1/1")  # reaches beyond the image: PNG, which loses nothing
    assert corner.headers["content-type"] == "image/png"
    image = np.asarray(Image.open(io.BytesIO(corner.content)))
    np.testing.assert_array_equal(image[: HEIGHT - 512, :, :3], wanted[512:, 512:1024])
    assert not image[HEIGHT - 512 :, :, 3].any()
    assert browser.get("/tiles/0/rgir/0/0/0").headers["content-type"] == "image/jpeg"
    assert browser.get("/tiles/0/ndsm/1/0/0").status_code == 200


def test_an_image_of_16_bits_is_shown_as_it_was_mapped(flown: Listener, tmp_path: Path) -> None:
    with rasterio.open(flown.flight.output.parent / "rgir.tif") as file:
        values, form = file.read(), {**file.profile, "dtype": "uint16"}
    with rasterio.open(tmp_path / "deep.tif", "w", **form) as file:
        file.write(values.astype(np.uint16) * 10)
    frame = flown.flight.frames[0]
    used = frame.inputs[Sensor.RGIR]
    deep = msgspec.structs.replace(used, path=str(tmp_path / "deep.tif"), stretch=((0.0, 2550.0),) * 3)
    inputs = InputPixels(None)
    window = Window(row=512, col=512, height=HEIGHT - 512, width=512)
    frame = ShownFrame(number=0, stamp="", grid=frame.grid, inputs={Sensor.RGIR: deep})
    shown = np.asarray(Image.open(io.BytesIO(inputs.picture(frame, Sensor.RGIR, window, 1).content)))
    np.testing.assert_array_equal(shown[: HEIGHT - 512, :, :3], np.moveaxis(values, 0, 2)[512:, 512:1024])


def test_a_base_layer_lies_under_the_map_where_it_belongs_and_asks_one_server_alone(flown: Listener) -> None:
    asked: list[str] = []

    class Tiles(BaseHTTPRequestHandler):
        """Every tile in a colour of its own: its column, its row, its level."""

        def do_GET(self) -> None:
            asked.append(self.path)
            z, x, y = (int(part) for part in self.path.strip("/").removesuffix(".png").split("/"))
            buffer = io.BytesIO()
            Image.new("RGB", (256, 256), (x % 256, y % 256, z)).save(buffer, "PNG")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *_words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tiles)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/{{z}}/{{x}}/{{y}}.png"
    site = MapSite(Replay(flown.flight.output), None, None, asyncio.Event(), address)
    browser = TestClient(site.app(None), base_url=HERE)
    answer = browser.get("/tiles/0/base/0/0/0")
    again = browser.get("/tiles/0/base/0/0/0")
    server.shutdown()
    assert answer.status_code == 200
    assert again.content == answer.content
    assert "img-src 'self'" in answer.headers["content-security-policy"]  # the browser asks nobody else
    assert browser.get("/state").json()["run"]["base"] == "127.0.0.1"
    image = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    place = from_origin(650000, 6860000, 0.2, 0.2)
    for row, col in ((20, 30), (200, 250), (370, 480)):
        (x,), (y,) = reproject_points("EPSG:2154", "EPSG:3857", *([each] for each in place @ (col + 0.5, row + 0.5)))
        tiles = 2**19 / (2 * 20037508.342789244)  # the finest level; nearly one map pixel a tile pixel
        wanted = (x + 20037508.342789244) * tiles % 256, (20037508.342789244 - y) * tiles % 256, 19.5
        np.testing.assert_allclose(image[row, col] + 0.5, wanted, atol=3)  # a JPEG
    assert len(asked) == len(set(asked))
    assert flown.browser().get("/tiles/0/base/0/0/0").status_code == 404
    assert flown.browser().get("/state").json()["run"]["base"] == ""


def test_a_pixel_is_told_in_words(flown: Listener) -> None:
    values = {name: published(flown.flight.output, name)[0] for name in MAPS}
    told = flown.browser().get("/pixel/0/300/400").json()
    assert told["class"] == f"class {values['classes'][300, 400]}"
    assert told["confidence"] == round(values["confidence"][300, 400] / 2.55)
    assert flown.browser().get(f"/pixel/0/{HEIGHT}/0").status_code == 404


def test_a_square_that_has_not_changed_is_not_sent_again(flown: Listener) -> None:
    browser = flown.browser()
    tag = browser.get("/tiles/0/classes/0/0/0").headers["etag"]
    assert browser.get("/tiles/0/classes/0/0/0", headers={"If-None-Match": tag}).status_code == 304
    flown.flight.sequence += 1
    flown.flight.frames[0].touch(Window(row=0, col=0, height=1, width=1), flown.flight.sequence)
    assert browser.get("/tiles/0/classes/0/0/0", headers={"If-None-Match": tag}).status_code == 200
    tag = browser.get("/tiles/0/classes/0/1/1").headers["etag"]
    assert browser.get("/tiles/0/classes/0/1/1", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize(
    "path", ["/tiles/0/classes/0/9/0", "/tiles/0/classes/60/0/0", "/tiles/7/classes/0/0/0", "/tiles/0/x/0/0/0"]
)
def test_what_is_not_there_is_not_found(flown: Listener, path: str) -> None:
    assert flown.browser().get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/state", "/nowhere", "/tiles/0/classes/0/0/0", "/report"])
def test_every_answer_forbids_what_is_not_from_here(flown: Listener, path: str) -> None:
    answer = flown.browser().get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_report_may_carry_its_own_style_and_no_script(flown: Listener) -> None:
    (flown.flight.output / "report.html").write_text("<style>p {}</style>")
    policy = flown.browser().get("/report").headers["content-security-policy"]
    (flown.flight.output / "report.html").unlink()
    assert "style-src 'unsafe-inline'" in policy
    assert "script-src" not in policy


def test_the_page_needs_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)
    for path in [*STATIC.glob("*.*")]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn", text), path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(flown: Listener, method: str) -> None:
    assert flown.browser().request(method, "/state").status_code == 405


def test_loopback_answers_to_its_own_name_alone(flown: Listener) -> None:
    browser = flown.browser()
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        assert browser.get("/", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", ""):
        assert browser.get("/", headers={"Host": host}).status_code == 421


def test_numbers_of_any_length_are_no_fault_of_the_server(flown: Listener) -> None:
    for path in ("/pixel/0/{}/0", "/tiles/{}/classes/0/0/0", "/tiles/0/classes/{}/0/0"):
        for digits, answer in ((900, 404), (5000, 414)):  # Python reads no number of more than 4300 digits
            assert flown.browser().get(path.format("9" * digits)).status_code == answer


def test_from_elsewhere_a_token_is_needed(flown: Listener) -> None:
    stranger = flown.browser(TOKEN)
    for path in ("/", "/state", "/tiles/0/classes/0/0/0", "/static/main.js", "/?token=wrong", "/?token="):
        assert stranger.get(path, follow_redirects=False).status_code == 401
    assert stranger.get("/state", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert stranger.get("/state", headers={"Cookie": "gemmnet-view=wrong; other"}).status_code == 401
    assert stranger.get("/state", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    welcome = stranger.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert (welcome.status_code, welcome.headers["location"]) == (303, "/")
    elsewhere = stranger.get(f"{HERE}//evil.example?token={TOKEN}", follow_redirects=False)
    assert elsewhere.headers["location"] == "/evil.example"
    cookie = welcome.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/state").status_code == 200  # it has the cookie now


def listen_to(flight: ShownFlight, *, last: str = "", after: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """The events that a browser hears until the server ends."""

    async def hear() -> bytes:
        ended, body = asyncio.Event(), b""

        async def send(message: Any) -> None:
            nonlocal body
            body += message.get("body", b"")
            if b"event: snapshot" in body or b"event: update" in body:
                after()
                ended.set()

        async def receive() -> Any:
            await asyncio.sleep(60)

        headers = [(b"last-event-id", last.encode())] if last else []
        await events.Events(flight, ended)({"type": "http", "headers": headers}, receive, send)
        return body

    blocks = [each for each in asyncio.run(hear()).decode().split("\n\n") if each]
    assert blocks[0] == "retry: 1000"
    heard = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks[1:]]
    return [{**each, "data": json.loads(each["data"])} for each in heard]


def test_a_new_browser_hears_everything_and_then_the_end(flown: Listener) -> None:
    first, last = listen_to(flown.flight)
    assert (first["event"], last["event"]) == ("snapshot", "end")
    assert first["id"] == f"me-{flown.flight.sequence}"
    assert first["data"] == json.loads(json.dumps(flown.flight.snapshot()))


def test_a_browser_that_comes_again_hears_what_is_new(flown: Listener) -> None:
    tiles = list(flown.flight.tiles)
    update, _ = listen_to(flown.flight, last=f"me-{tiles[-4].sequence}")
    assert update["event"] == "update"
    assert update["data"]["tiles"]["number"] == [each.number for each in tiles[-3:]]
    # the squares of the last tiles may have been painted before these were told of
    assert listen_to(flown.flight, last=f"me-{tiles[0].sequence}")[0]["data"]["painted"]
    for stranger in ("you-3", "me-999999", "me-x", "?"):
        assert listen_to(flown.flight, last=stranger)[0]["event"] == "snapshot"


def test_a_browser_that_came_before_the_run_begins_anew_with_it(flown: Listener) -> None:
    flight = ShownFlight(flown.flight.output)
    for message in flown.told:
        before = flight.sequence
        flight.apply(message)
        assert (flight.news(before) is None) is isinstance(message, messages.Started)


def test_a_browser_that_falls_behind_begins_anew(flown: Listener) -> None:
    flight = ShownFlight(flown.flight.output, identity="me")
    tile = next(each for each in flown.told if isinstance(each, TileDone))
    for _ in range(TILES_KEPT + 10):
        flight.apply(tile)
    assert flight.news(5) is None
    assert len(flight.news(flight.sequence - 20)["tiles"]["number"]) == 20  # type: ignore[index]
    assert listen_to(flight, last="me-5")[0]["event"] == "snapshot"
    assert len(flight.snapshot()["tiles"]["number"]) == TILES_KEPT


def test_a_browser_that_does_not_read_is_hung_up_on(flown: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PATIENCE_S", 0.05)

    async def stuck(_message: Any) -> None:
        await asyncio.sleep(60)

    async def look() -> int:
        told = events.Events(flown.flight, asyncio.Event())
        await told({"type": "http", "headers": []}, lambda: asyncio.sleep(60), stuck)
        return told.browsers

    assert asyncio.run(asyncio.wait_for(look(), 10)) == 0


def test_there_is_a_limit_to_browsers(flown: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_BROWSERS", 0)
    assert flown.browser().get("/events").status_code == 503


def test_a_full_pipe_costs_lines_and_never_waits(flown: Listener) -> None:
    tile = next(each for each in flown.told if isinstance(each, TileDone))
    reading, writing = os.pipe()
    outlet = Outlet(writing)
    for _ in range(2000):
        outlet.send(tile)
    assert outlet.dropped > 0
    content = os.read(reading, 1 << 20)
    outlet.send(messages.Waiting(waits=True))
    outlet.close()
    content += os.read(reading, 1 << 20)
    told = [messages.decode(line) for line in content.splitlines()]  # each whole
    assert told.count(tile) == 2000 - outlet.dropped
    assert told[-1] == messages.Waiting(waits=True)
    os.close(reading)


def test_the_run_goes_on_when_the_page_has_died(flown: Listener, caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    outlet = Outlet(writing)
    os.close(reading)
    for _ in range(3):
        outlet.send(messages.Waiting(waits=True))
    outlet.close()
    assert caplog.text.count("the page has ended") == 1


class _Browser(Observer):
    """Asks the page over HTTP while the run goes on."""

    def __init__(self, url: str) -> None:
        self.url, self.states = url, list[Any]()

    def tile_done(self, report: Any) -> None:
        if report.tile.index == 30:
            with urllib.request.urlopen(f"{self.url}state", timeout=30) as answer:
                self.states.append((json.load(answer), dict(answer.headers)))


@pytest.mark.slow
def test_a_process_of_its_own_serves_the_run(flown: Listener, toy_bundle: Bundle, tmp_path: Path) -> None:
    paths = {sensor: flown.flight.output.parent / f"{sensor}.tif" for sensor in Sensor}
    page = Page(":0", tmp_path / "map")
    browser = _Browser(page.invitation.url)
    with page as teller:
        run(request_for(toy_bundle, paths, tmp_path / "map", watch=True), Observers([teller, browser]))
    told, headers = browser.states[0]
    assert told["run"]["sensors"] == ["rgir", "ndsm"]
    assert headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert "server" not in headers
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(page.invitation.url, timeout=5)


@pytest.mark.parametrize(("given", "rule"), [("8080x", "takes"), (":99999", "takes"), ("192.0.2.1:0", "must name")])
def test_an_address_that_cannot_be_served_is_refused(given: str, rule: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--serve {rule}"):
        Page(given, tmp_path)


def test_only_this_machine_needs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(address.TOKEN_VARIABLE, raising=False)
    for host, needed in (("", False), ("localhost", False), ("[::1]", False), ("0.0.0.0", True)):
        listening, invitation = address.listen("--serve", f"{host}:0")
        listening.close()
        assert (invitation.token is not None) is needed
        assert ("?token=" in invitation.url) is needed
    monkeypatch.setenv(address.TOKEN_VARIABLE, TOKEN)
    listening, invitation = address.listen("--serve", ":0")
    listening.close()
    assert invitation.token == TOKEN
    monkeypatch.setenv(address.TOKEN_VARIABLE, "short")
    with pytest.raises(UsageError, match="at least 16"):
        address.listen("--serve", ":0")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "LIBRARIES", ("starlette", "no_such_library"))
    with pytest.raises(UsageError, match=re.escape("no_such_library: pip install 'gemmnet-edge[view]'")):
        address.listen("--serve", ":0")


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "run.json" in error
    assert error.count("\n") == 1


def test_vendored_files_are_those_that_are_listed() -> None:
    vendor = STATIC / "vendor"
    listed = tomllib.loads((vendor / "vendored.toml").read_text())
    found = {
        str(path.relative_to(vendor)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.rglob("*")
        if path.is_file() and path.name != "vendored.toml"
    }
    assert found == listed["sha256"]
    for package in listed["package"]:
        assert f"{package['name']}/LICENSE" in found
