"""STAC items as inputs: which files and bands they name, against the same files named by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio

from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.errors import GridError, RasterFormatError, RasterOpenError, UsageError
from engine.contract.sensors import Sensor
from engine.rasters.georeference import gdal_environment
from engine.rasters.height_models import HeightModels
from engine.rasters.raster import SensorRasters
from engine.run import main
from engine.stac import reading
from engine.stac.assets import rasters_of
from engine.stac.listing import items_in
from tests.conftest import make_scene
from tests.engine.runs import Watcher, request_for, run_told

SPECS = {Sensor.RGIR: rgir_spec(), Sensor.NDSM: ndsm_spec()}
WORDS = {"1.1": ("bands", "eo:common_name"), "1.0": ("eo:bands", "common_name")}


@pytest.fixture
def files(write_scene, tmp_path) -> dict[str, Path]:
    """The scene's rasters, and its bands in files of their own."""
    paths = write_scene(make_scene(70, 90))
    found = {"rgir": paths[Sensor.RGIR], "ndsm": paths[Sensor.NDSM]}
    with rasterio.open(found["rgir"]) as file:
        for number, name in enumerate(("nir", "red", "green"), 1):
            found[name] = tmp_path / "scene" / f"{name}.tif"
            with rasterio.open(found[name], "w", **{**file.profile, "count": 1}) as band:
                band.write(file.read(number), 1)
    return found


def item(path: Path, assets: dict[str, tuple[Path, list[str]]], *, version: str = "1.1", **roles: list[str]) -> str:
    """Write an item beside its files, which it names relative to itself."""
    made = pystac.Item("scene", None, None, datetime(2026, 5, 1, tzinfo=UTC), {})
    for key, (file, bands) in assets.items():
        field, word = WORDS[version]
        extra: dict[str, Any] = (
            {field: [{word: band, "name": f"B{n}"} for n, band in enumerate(bands)]} if bands else {}
        )
        made.add_asset(key, pystac.Asset(f"./{file.name}", roles=roles.get(key), extra_fields=extra))
    told = made.to_dict(include_self_link=False)
    told["stac_version"] = f"{version}.0"
    path.write_text(json.dumps(told))
    return str(path)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_bands_are_found_in_one_file_by_their_common_names(version, files, tmp_path) -> None:
    name = item(tmp_path / "scene" / "item.json", {"image": (files["rgir"], ["green", "nir", "red"])}, version=version)
    given, bands = rasters_of(name)
    assert given == {Sensor.RGIR: files["rgir"]}
    assert bands == (2, 3, 1)


def test_bands_in_files_of_their_own_are_read_as_one_raster(files, toy_bundle, tmp_path) -> None:
    assets = {f"B0{n}": (files[name], [name]) for n, name in enumerate(("green", "red", "nir"))}
    given, bands = rasters_of(item(tmp_path / "scene" / "item.json", {**assets, "ndsm": (files["ndsm"], [])}))
    assert bands is None
    assert given[Sensor.NDSM] == files["ndsm"]
    for paths in (given, {Sensor.RGIR: files["rgir"], Sensor.NDSM: files["ndsm"]}):
        with SensorRasters.open(paths, SPECS) as rasters:
            seen = rasters.read(0, 0, 70, 90)
        if paths is given:
            first = seen
    for sensor in Sensor:
        np.testing.assert_array_equal(first[sensor].valid, seen[sensor].valid)
        np.testing.assert_array_equal(first[sensor].values, seen[sensor].values)
    run = run_told(request_for(toy_bundle, {Sensor.RGIR: given[Sensor.RGIR]}, tmp_path / "out"), Watcher())
    assert run["inputs"]["rgir"]["driver"] == "VRT"


def test_heights_are_found_by_key_role_or_name(files, tmp_path) -> None:
    path = tmp_path / "scene" / "item.json"
    assert rasters_of(item(path, {"elevation": (files["ndsm"], [])}, elevation=["nDSM"]))[0] == {
        Sensor.NDSM: files["ndsm"]
    }
    assert rasters_of(item(path, {"a": (files["ndsm"], ["dsm"]), "dtm": (files["nir"], [])}))[0] == {
        Sensor.NDSM: HeightModels(dsm=files["ndsm"], dtm=files["nir"])
    }


def test_the_command_maps_an_item(files, toy_bundle, tmp_path, capsys) -> None:
    name = item(
        tmp_path / "scene" / "item.json",
        {"image": (files["rgir"], ["nir", "red", "green"]), "ndsm": (files["ndsm"], [])},
    )
    given = ["--bundle", str(toy_bundle.root), "--output", str(tmp_path / "out"), "--dry-run"]
    assert main([*given, "--stac", name]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["inputs"]["rgir"]["path"], told["inputs"]["rgir"]["bands"]) == (str(files["rgir"]), [1, 2, 3])
    assert told["health"]["watched"]
    assert main([*given, "--stac", name, "--sensors", "rgir"]) == 0
    assert set(json.loads(capsys.readouterr().out)["inputs"]) == {"rgir"}
    assert main([*given, "--stac", name, "--rgir", "a.tif"]) == 2
    assert "leave --rgir away" in capsys.readouterr().err


def test_an_item_that_cannot_be_used_is_told_in_one_line(files, tmp_path) -> None:
    path, coarse = tmp_path / "scene" / "item.json", tmp_path / "scene" / "coarse.tif"
    with (
        rasterio.open(files["red"]) as file,
        rasterio.open(coarse, "w", **{**file.profile, "width": 45, "height": 35}) as small,
    ):
        small.write(file.read(out_shape=(1, 35, 45)))
    cases: list[tuple[str, type[Exception], str]] = [
        (str(tmp_path / "absent.json"), RasterOpenError, "cannot be read"),
        (
            item(path, {"image": (files["rgir"], ["blue", "red", "green"])}),
            RasterFormatError,
            "has image: blue, red, green",
        ),
    ]
    (tmp_path / "text.json").write_text("{")
    cases.append((str(tmp_path / "text.json"), RasterOpenError, "it is no JSON object"))
    for name, error, says in cases:
        with pytest.raises(error, match=says) as caught:
            rasters_of(name)
        assert "\n" not in str(caught.value)
    bands = {"a": (files["nir"], ["nir"]), "b": (coarse, ["red"]), "c": (files["green"], ["green"])}
    with pytest.raises(GridError, match="must lie on one grid"):
        rasters_of(item(path, bands))


def test_a_missing_library_names_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pystac", None)
    with pytest.raises(UsageError, match=r"pip install 'gemmnet-edge\[stac\]'"):
        rasters_of("item.json")


class Answers(SimpleHTTPRequestHandler):
    """Files of a folder, a server that says nothing and one that stops halfway."""

    def do_GET(self) -> None:
        if self.path == "/silent.json":
            self.server.released.wait(20)  # type: ignore[attr-defined]
            self.close_connection = True
        elif self.path in ("/half.json", "/drip.json"):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"{")
            while self.path == "/drip.json" and not self.server.released.wait(0.02):  # type: ignore[attr-defined]
                self.wfile.write(b" ")
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    """The address of a server of the folder ``scene``."""
    (tmp_path / "scene").mkdir(exist_ok=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, directory=str(tmp_path / "scene"))) as server:
        server.released = threading.Event()  # type: ignore[attr-defined]
        working = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        working.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.released.set()  # type: ignore[attr-defined]
        server.shutdown()
        working.join()


RANGES = """
import http.server, pathlib, re
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            body = pathlib.Path("." + self.path).read_bytes()
        except OSError:
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), len(body) - 1)) if asked else (0, len(body) - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[first : last + 1])
    do_HEAD = do_GET
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""A process of its own: rasterio keeps Python's lock while it opens a file."""


def test_an_item_of_a_server_names_its_rasters_relative_to_itself(files, tmp_path) -> None:
    item(tmp_path / "scene" / "item.json", {"a": (files["rgir"], ["nir", "red", "green"]), "ndsm": (files["ndsm"], [])})
    read = []
    with subprocess.Popen(
        [sys.executable, "-c", RANGES], cwd=tmp_path / "scene", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            place = f"http://127.0.0.1:{int(server.stdout.readline())}"
            given, bands = rasters_of(f"{place}/item.json")
            assert (given, bands) == ({Sensor.RGIR: f"{place}/rgir.tif", Sensor.NDSM: f"{place}/ndsm.tif"}, (1, 2, 3))
            for paths in (given, {Sensor.RGIR: files["rgir"], Sensor.NDSM: files["ndsm"]}):
                with gdal_environment(), SensorRasters.open(paths, SPECS) as rasters:
                    read.append(rasters.read(0, 0, 70, 90))
        finally:
            server.kill()
    for sensor in Sensor:
        np.testing.assert_array_equal(read[0][sensor].values, read[1][sensor].values)


def test_an_item_named_from_here_names_its_rasters_from_itself(files, tmp_path, monkeypatch) -> None:
    item(tmp_path / "scene" / "item.json", {"a": (files["rgir"], ["nir", "red", "green"])})
    monkeypatch.chdir(tmp_path)
    assert rasters_of("scene/item.json")[0] == {Sensor.RGIR: files["rgir"]}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.json", "the server answers 404"),
        ("page.html", "it is no JSON object"),
        ("list.json", "it is no JSON object"),
        ("half.json", "the connection ended 99 bytes before its end"),
        ("silent.json", "the server said nothing for 0.3 s"),
        ("drip.json", "or not all in 0.4 s"),
    ],
)
def test_what_a_server_sends_in_place_of_an_item_is_told_in_one_line(name, says, served, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "SILENCE_S", 0.3)
    monkeypatch.setattr(reading, "LIMIT_S", 0.4)
    (tmp_path / "scene" / "page.html").write_text("<html>\n<p>Sign in")
    (tmp_path / "scene" / "list.json").write_text("[]")
    for read in (rasters_of, lambda url: list(items_in(url))):
        with pytest.raises(RasterOpenError, match=says) as caught:
            read(f"{served}/{name}")
        assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(RasterOpenError, match="the server cannot be reached"):
        rasters_of("http://127.0.0.1:9/item.json")
    with pytest.raises(RasterOpenError, match="fetch it first"):
        rasters_of("s3://bucket/item.json")
