"""The live map in a real browser: a sensor dies, the page shows it; the server goes and comes; keys; a small screen."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from engine.health.faults import parse_faults
from engine.observer import Observer, Observers
from engine.runner import run
from engine.view.address import listen
from engine.view.observer import Page
from tests.conftest import write_toy_bundle
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import request_for

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
if not CHROMIUM:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 400, 560
OUT_OF_THE_WAY = """() => { for (const pane of ['marker', 'overlay', 'shadow', 'popup'])
    document.querySelector(`.leaflet-${pane}-pane`).style.display = 'none'; }"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("browser"), tile_px=128, halo_px=16)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[Sensor, Path]:
    folder, written = tmp_path_factory.mktemp("scene"), {}
    scene, _ = flight_scene(HEIGHT, WIDTH)
    houses = scene[Sensor.NDSM] > 8  # metres; on ground that is level
    noise = np.random.default_rng(0).normal(0, 0.1, houses.shape)
    scene[Sensor.NDSM] = (6 * houses + noise).astype(np.float32)
    for sensor, values in scene.items():
        written[sensor] = folder / f"{sensor}.tif"
        form = {"height": HEIGHT, "width": WIDTH, "count": len(values), "dtype": values.dtype}
        place = {"crs": "EPSG:2154", "transform": from_origin(650000, 6860000, 0.2, 0.2)}
        with rasterio.open(written[sensor], "w", driver="GTiff", **form, **place) as file:
            file.write(values)
    return written


class Gate(Observer):
    """Holds a flight up at a tile until the page has been looked at."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def tile_done(self, report: Any) -> None:
        if report.tile.index == 13:
            assert self.opened.wait(180)


def free_port() -> int:
    listening, invitation = listen("--serve", ":0")
    listening.close()
    return invitation.address.port


def open_page(chromium: Any, url: str, width: int = 1280, height: int = 900) -> tuple[Any, list[str]]:
    """A page, and whatever its console complains of."""
    page, complaints = chromium.new_page(viewport={"width": width, "height": height}), list[str]()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(60_000)  # milliseconds, on a machine that does other things
    page.goto(url)
    return page, complaints


def test_a_flight_from_its_first_tile_to_its_folder(
    chromium: Any, bundle: Bundle, paths: dict[Sensor, Path], tmp_path: Path
) -> None:
    output, port = tmp_path / "map", free_port()
    faults = parse_faults("ndsm:constant@8-15")
    request = request_for(bundle, paths, output, watch=True, inject=faults, deadline_ms=1000.0)
    served = Page(f":{port}", output)
    with served as teller:
        page, complaints = open_page(chromium, served.invitation.url)
        gate = Gate()
        flight = threading.Thread(target=run, args=(request, Observers([teller, gate])))
        flight.start()
        page.locator("#switches button").first.wait_for()
        assert "8: " in page.locator("#switches").inner_text()
        assert "RGIR only" in page.locator("#switches").inner_text()
        assert "nDSM dead (constant" in page.locator("#switches").inner_text()
        page.locator(".sensor[data-state='4']").wait_for()
        assert "✕ dead" in page.locator(".sensor[data-state='4']").inner_text()
        assert page.locator(".leaflet-marker-icon").count() >= 1
        assert page.locator("#phase").inner_text() == "running"
        gate.opened.set()
        flight.join()
        page.locator("#phase", has_text="finished").wait_for()
    page.locator("#notice", has_text="gemmnet view").wait_for()
    assert not [each for each in complaints if "ERR_CONNECTION" not in each and "net::" not in each]

    command = [sys.executable, "-m", "engine.view", str(output), "--serve", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as viewer:
        try:
            page.locator("#charts-heading", has_text="The whole run").wait_for()  # it found the new server by itself
            assert page.locator("#notice").is_hidden()
            same_pixels(page, output)
            by_keyboard(page)
            small_screen(chromium, page.url)
        finally:
            viewer.kill()  # without a word
            viewer.wait()
    page.locator("#link", has_text="trying again").wait_for()
    page.close()


def same_pixels(page: Any, output: Path) -> None:
    """What is seen of the map, at one screen pixel a map pixel, is what the file holds."""
    page.evaluate("() => document.querySelector('input[name=input][value=\"\"]').click()")
    opacity = page.locator("#opacity")
    opacity.focus()
    opacity.press("End")
    page.evaluate(OUT_OF_THE_WAY)
    square = page.locator("#map .square img[src*='classes/0/0/0']")
    square.wait_for()
    corner = square.bounding_box()
    scale = corner["width"] / 512
    assert scale == int(scale)
    clip = {"x": corner["x"], "y": corner["y"], "width": 512 * scale, "height": HEIGHT * scale}
    seen = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))
    with rasterio.open(output / "classes.tif") as file:
        values, palette = file.read(1)[:, :512], file.colormap(1)
    wanted = np.array([palette[each][:3] for each in range(256)], np.uint8)[values]
    step = int(scale)
    wanted = wanted.repeat(step, 0).repeat(step, 1)
    inside = np.s_[90:, 60:]  # beside the buttons of the zoom
    np.testing.assert_array_equal(seen[inside], wanted[inside])


def by_keyboard(page: Any) -> None:
    """Layers, the map and the switches without a mouse."""
    page.locator("#title").click()
    page.keyboard.press("2")
    assert page.locator("input[name=map][value=provenance]").is_checked()
    page.locator("#map .square img[src*='provenance']").first.wait_for()
    page.keyboard.press("n")
    page.locator(".leaflet-popup-content").wait_for(state="attached")
    assert "now mapped from" in page.locator(".leaflet-popup-content").text_content()
    page.locator("#map").focus()
    before = page.locator("#map .square").first.bounding_box()
    page.keyboard.press("+")
    page.wait_for_function(
        "(width) => document.querySelector('#map .square').getBoundingClientRect().width !== width", arg=before["width"]
    )
    page.keyboard.press("ArrowRight")
    page.locator("#place", has_text="sure").wait_for()  # what lies in the middle is said


def small_screen(chromium: Any, url: str) -> None:
    """Nothing sticks out at the width of a telephone."""
    page, complaints = open_page(chromium, url, 390, 844)
    page.locator("#map .square img").first.wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert not complaints
    page.close()
