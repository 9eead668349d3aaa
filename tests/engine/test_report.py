"""The report: it needs nothing from anywhere, cannot be forged, and says what run.json, tiles.csv and the maps say."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from engine.contract.errors import OutputError, RasterOpenError, UsageError
from engine.contract.page import VOID, charts, tag
from engine.contract.page.charts import Look, stretches
from engine.contract.sensors import PROVENANCE_RGB, Provenance, Sensor
from engine.health.faults import parse_faults
from engine.output import REPORT_NAME as NAME
from engine.rasters.georeference import gdal_environment
from engine.report import write_report
from engine.report.__main__ import main
from engine.report.data import Finished, Shown
from engine.run import main as run
from engine.tile_log import read_tile_log
from tests.conftest import make_scene
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import Watcher, live_request, request_for, run_told

FAULTS = "ndsm:frozen@9-12,rgir:constant@25,ndsm:error@40-41,rgir:late@60-,ndsm:late@61-"


class Page(HTMLParser):
    """A document: balanced or not, its attributes and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, element, attributes) -> None:
        self.elements.append((element, dict(attributes)))
        if element not in VOID:
            self.open.append(element)

    def handle_endtag(self, element) -> None:
        assert self.open.pop() == element

    def handle_data(self, data) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, element: str, **wanted: str) -> list[dict[str, str]]:
        found = (attributes for name, attributes in self.elements if name == element)
        return [each for each in found if all(each.get(key.rstrip("_")) == value for key, value in wanted.items())]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def report_of(output: Path) -> Page:
    return Page(write_report(output).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def flown(toy_bundle, tmp_path_factory) -> Path:
    """A flight with faults, two tiles of it lost; a copy for every test that changes it."""
    folder = tmp_path_factory.mktemp("flown")
    paths = _written(flight_scene(330, 410), folder)
    request = request_for(toy_bundle, paths, folder / "map", watch=True, inject=parse_faults(FAULTS), deadline_ms=0.001)
    run_told(request, Watcher())
    return folder / "map"


@pytest.fixture
def copy(flown, tmp_path) -> Path:
    return Path(shutil.copytree(flown, tmp_path / "map", ignore=shutil.ignore_patterns(NAME)))


def _written(scene, folder: Path) -> dict[Sensor, Path]:
    """Rasters in a folder, for fixtures that outlive a test."""
    import rasterio

    paths = {}
    for sensor, values in scene[0].items():
        paths[sensor] = folder / f"{sensor}.tif"
        with rasterio.open(
            paths[sensor], "w", driver="GTiff", height=values.shape[1], width=values.shape[2], count=len(values),
            dtype=values.dtype, crs="EPSG:2154", transform=rasterio.Affine(0.2, 0, 650000, 0, -0.2, 6860000),
        ) as file:  # fmt: skip
            file.write(values)
    return paths


def test_the_page_is_whole_and_needs_nothing_from_anywhere(flown) -> None:
    page = report_of(flown)
    assert not {"script", "link", "iframe", "object"} & {element for element, _ in page.elements}
    for element, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], element
        for name in ("src", "href"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:image/png;base64,")) or (flown / target).is_file(), target
    style = (flown / NAME).read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    links = {attributes["href"][1:] for attributes in page.all("a") if attributes["href"].startswith("#")}
    assert links == set(identities)
    assert all(attributes.get("alt") for attributes in page.all("img"))


def test_whatever_a_run_tells_is_text_on_the_page(copy) -> None:
    evil = "<script>alert('1')</script>\"&<b>"
    fixed = {
        "scenario",
        "scenarios",
        "sensor",
        "state",
        "fault",
        "injection",
        "blend",
        "when_behind",
        "limits",
        "what",
        "graph",
    }

    def poison(value):
        if isinstance(value, dict):
            return {key: each if key in fixed else poison(each) for key, each in value.items()}
        if isinstance(value, list):
            return [poison(each) for each in value]
        return evil if isinstance(value, str) else value

    told = json.loads((copy / "run.json").read_text())
    event = {**dict.fromkeys(("at_utc", "backend", "detail"), evil), "what": "hung", "tiles_in_flight": 3}
    told["backend_events"] = [event]
    (copy / "run.json").write_text(json.dumps(poison(told)))
    hostile = copy.rename(copy.parent / "a <script>'\"&amp;")
    text = write_report(hostile).read_text()
    page = Page(text)
    assert not page.all("script")
    assert evil in page.words
    assert "a <script>'\"&amp;" in page.words
    assert not any("alert" in name for _, attributes in page.elements for name in attributes)


def test_it_says_what_was_lost_and_why(flown) -> None:
    told = json.loads((flown / "run.json").read_text())
    rows = list(read_tile_log(flown / "tiles.csv"))
    lost = sum(row.lost for row in rows)
    assert lost == told["tiles_lost"] == 2
    words = report_of(flown).words
    assert f"{len(rows)} tiles, 2 lost: 2 because no sensor was usable." in words
    assert f"The engine was switched {told['result']['switch_count']} times." in words
    assert "tiles 9 to 14 (frozen)" in words
    assert "tiles 25 to 27 (constant)" in words
    assert "Faults were injected on purpose: 5 of 5 were seen." in words
    assert f"deadline misses {len(rows)}" in words


def test_every_change_of_a_sensor_is_listed_with_its_reason(flown) -> None:
    told = json.loads((flown / "run.json").read_text())
    words = report_of(flown).words
    assert told["health"]["changes"]
    for change in told["health"]["changes"]:
        name = {"rgir": "RGIR", "ndsm": "nDSM"}[change["sensor"]]
        fault = (change["fault"] or "").replace("_", " ")
        line = " ".join(f"{change['tile']} {name} {change['state']} {fault} {change['detail']}".split())
        assert line in words


def test_lanes_are_as_long_as_the_states_last(flown) -> None:
    run_ = Finished(flown)
    page = report_of(flown)
    dead = [float(each["width"]) for each in page.all("rect", fill="var(--dead)")]
    rows = list(read_tile_log(flown / "tiles.csv"))
    assert sum(dead) == sum(not row.verdicts[sensor].usable for row in rows for sensor in Sensor)
    assert len(dead) == sum(len(list(run_.outages(sensor))) for sensor in Sensor) == 5
    only_ndsm = "#{:02x}{:02x}{:02x}".format(*PROVENANCE_RGB[Provenance.MISSING_RGIR])
    lanes = [each for each in page.all("rect", fill=only_ndsm) if each["height"] == "1" and "." not in each["x"]]
    assert sum(float(each["width"]) for each in lanes) >= sum(row.scenario == "missing_rgir" for row in rows)


def test_marks_lie_in_the_middle_of_the_tiles_that_switched(flown) -> None:
    told = json.loads((flown / "run.json").read_text())
    rows = list(read_tile_log(flown / "tiles.csv"))
    found = [attributes["style"] for attributes in report_of(flown).all("span", class_="mark")]
    expected = []
    for switch in told["result"]["switches"]:
        window = rows[switch["tile"]].target
        top = 100 * (window.row + window.height / 2) / told["grid"]["height"]
        left = 100 * (window.col + window.width / 2) / told["grid"]["width"]
        expected.append(f"top:{top:.2f}%;left:{left:.2f}%")
    assert len(expected) == told["result"]["switch_count"] > 5
    assert [style.partition(";background")[0] for style in found] == expected


def test_the_pictures_are_the_maps(flown) -> None:
    import rasterio

    pictures = []
    for attributes in report_of(flown).all("img"):
        encoded = base64.b64decode(attributes["src"].partition(",")[2])
        pictures.append((attributes["alt"], np.asarray(Image.open(io.BytesIO(encoded)).convert("RGBA"))))
    assert [name for name, _ in pictures] == ["classes", "provenance", "confidence"]
    for name, picture in pictures:
        with rasterio.open(flown / f"{name}.tif") as file:
            values = file.read(1)
            colours = np.array([file.colormap(1)[v] for v in range(256)]) if name != "confidence" else None
            unmapped = values == file.nodata
        assert picture.shape[:2] == values.shape, "small maps are shown pixel by pixel"
        np.testing.assert_array_equal(picture[..., 3] == 0, unmapped)
        shown = np.repeat(values[..., None], 3, axis=2) if colours is None else colours[values][..., :3]
        np.testing.assert_array_equal(picture[~unmapped][..., :3], shown[~unmapped])


def test_a_clean_run_says_so(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(flight_scene(200, 230))
    assert run([*_options(toy_bundle, paths), "--output", str(tmp_path / "map"), "--report", "--quiet"]) == 0
    page = Page((tmp_path / "map" / NAME).read_text())
    assert "tiles, none lost." in page.words
    assert "RGIR was usable in every tile. nDSM was usable in every tile. The engine was never switched." in page.words
    assert "No sensor changed its state." in page.words
    assert "Injected faults" not in page.words
    assert "It ran through: no failure, no fallback." in page.words


def test_trusted_sensors_one_sensor_and_blended_tiles_are_told(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(make_scene(200, 230))
    run_told(request_for(toy_bundle, paths, tmp_path / "trusted", blend="hann"), Watcher())
    words = report_of(tmp_path / "trusted").words
    assert "The sensors were trusted: nobody watched them." in words
    assert "Tiles cross-fade in this run" in words
    assert "RGIR only" in words
    alone = {Sensor.NDSM: paths[Sensor.NDSM]}
    run_told(request_for(toy_bundle, alone, tmp_path / "alone", watch=True), Watcher())
    words = report_of(tmp_path / "alone").words
    assert "toy, nDSM, started" in words
    assert "RGIR was" not in words


def test_a_map_of_one_tile_and_one_without_any_data_have_reports(toy_bundle, write_scene, tmp_path) -> None:
    scene = flight_scene(30, 40)
    run_told(request_for(toy_bundle, write_scene(scene), tmp_path / "one", watch=True), Watcher())
    words = report_of(tmp_path / "one").words
    assert "1 tile, none lost." in words
    assert "Seams" not in words
    for sensor in Sensor:
        scene[1][sensor][:] = False
    run_told(request_for(toy_bundle, write_scene(scene, "empty"), tmp_path / "none", watch=True), Watcher())
    words = report_of(tmp_path / "none").words
    assert "RGIR was not usable in 1 of 1 tile: tile 0 (no data)." in words
    assert "Confidence by sensors" not in words


def test_long_strips_are_folded_and_their_marks_with_them(toy_bundle, write_scene, tmp_path) -> None:
    for name, size in (("wide", (60, 2600)), ("high", (2600, 60))):
        request = request_for(
            toy_bundle, write_scene(flight_scene(*size), name), tmp_path / name, watch=True,
            inject=parse_faults("ndsm:late@20"),
        )  # fmt: skip
        run_told(request, Watcher())
        page = report_of(tmp_path / name)
        assert "The strip is folded" in page.words
        assert len(page.all("img")) == 3 * 5  # sqrt(0.75 * 2600 / 60), rounded down
        marks = page.all("span", class_="mark")
        assert len(marks) == 2
        first = next(row for row in read_tile_log(tmp_path / name / "tiles.csv") if row.tile == 20)
        middle = (first.target.col + first.target.width / 2, first.target.row + first.target.height / 2)
        along = middle[0 if name == "wide" else 1] / 2600 * 5
        side = "left" if name == "wide" else "top"
        assert f"{side}:{100 * (along % 1):.2f}%" in marks[0]["style"]


def test_many_switches_are_dots(toy_bundle, write_scene, tmp_path) -> None:
    faults = parse_faults(",".join(f"ndsm:dead@{tile}" for tile in range(3, 60, 2)))
    paths = write_scene(flight_scene(400, 500))
    run_told(request_for(toy_bundle, paths, tmp_path / "map", watch=True, inject=faults), Watcher())
    page = report_of(tmp_path / "map")
    assert len(page.all("span", class_="mark dot")) == 58
    assert not page.all("span", class_="mark")


@pytest.fixture
def landed(tmp_path) -> Iterator[Path]:
    """Ten frames of two tiles each; nDSM is missing in the third and fourth."""
    scene = flight_scene(60, 700)
    (tmp_path / "landing").mkdir()
    for number in range(10):
        cut = {sensor: values[:, :, 60 * number : 60 * number + 100] for sensor, values in scene[0].items()}
        for sensor, path in _written((cut, scene[1]), tmp_path).items():
            if sensor is Sensor.RGIR or number not in (3, 4):
                path.rename(tmp_path / "landing" / f"{sensor}_{number:03d}.tif")
    with gdal_environment():
        yield tmp_path / "landing"


def test_a_live_flight_shows_its_frames(toy_bundle, landed, tmp_path) -> None:
    told = run_told(live_request(toy_bundle, landed, tmp_path / "map", idle_exit_s=0.3, partner_wait_ms=100))
    assert told["frames"]["mapped"] == 10
    page = report_of(tmp_path / "map")
    assert "10 frames, 20 tiles, none lost." in page.words
    assert [each["alt"] for each in page.all("img")] == [f"classes of frame {number:03d}" for number in range(10)]
    # in its first tile 006 has the third good nDSM, and the sensor is believed again
    assert re.findall(r"\d{3} switched", page.words) == ["003 switched", "006 switched"]
    change = told["health"]["changes"][0]
    assert (change["frame"], change["tile"]) == ("003", 0)
    assert f"6 003 nDSM dead late {change['detail']}" in page.words
    assert {each["href"] for each in page.all("a")} >= {f"{number:03d}/classes.tif" for number in range(10)}


def test_what_is_no_finished_run_is_refused(copy, tmp_path, capsys) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "needs run.json and tiles.csv" in capsys.readouterr().err
    text = (copy / "run.json").read_text()
    for content in ("{", "[]", '{"health": {}}'):
        (copy / "run.json").write_text(content)
        with pytest.raises(UsageError, match="not of this version"):
            write_report(copy)
    (copy / "run.json").write_text(text)
    (copy / "tiles.csv").write_text("tile,frame\n")
    with pytest.raises(UsageError, match="must begin with the columns"):
        write_report(copy)
    assert not (copy / NAME).exists()


def test_maps_that_are_missing_or_of_another_run_are_refused(copy) -> None:
    told = json.loads((copy / "run.json").read_text())
    told["grid"]["width"] += 1
    (copy / "run.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="not of one run"):
        write_report(copy)
    (copy / "confidence.tif").unlink()
    with pytest.raises(RasterOpenError, match="confidence"):
        write_report(copy)


def test_the_command_writes_and_names_the_file_and_replaces_an_older_one(copy, capsys) -> None:
    (copy / NAME).write_text("old")
    assert main([str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / NAME)
    assert (copy / NAME).read_text().startswith("<!DOCTYPE html>")
    assert [each.name for each in copy.glob(".*")] == []


def test_a_page_that_cannot_be_written_is_an_output_error(copy) -> None:
    (copy / NAME).mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(copy)
    assert [each.name for each in copy.glob(".*")] == []


def test_markup_is_escaped_unless_it_is_markup() -> None:
    assert tag("p", "a<b", Markup("<i>"), 3, None, ["&", ("x",)], class_="q\"'", data_n=None) == (
        '<p class="q&#34;&#39;">a&lt;b<i>3&amp;x</p>'
    )
    assert tag("br") == "<br>"


def test_more_tiles_than_columns_show_the_worst_of_each() -> None:
    values = np.zeros(10 * charts.MOST_COLUMNS, np.int8)
    values[[7, 4321]] = 1
    drawn = charts.lane(values, {1: Look(colour="red", height=1, name="bad")})
    bars = re.findall(r'<rect x="(\d+)" y="0" width="(\d+)"', drawn)
    assert [(int(x), int(width)) for x, width in bars] == [(0, 10), (4320, 10)]
    assert "tiles 4320 to 4329: bad" in drawn


def test_a_histogram_holds_every_value_once() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.uniform(3, 9, 500), rng.lognormal(3, 2, 500), np.full(5, 7.0)):
        groups = [("red", values[::2]), ("blue", values[1::2])]
        drawn = charts.histogram(groups, unit="ms", rulers=[charts.Ruler(at=float(np.median(values)), label="p50")])
        bars = re.findall(r'height="(\d+)" fill="(red|blue)"', drawn)
        counts = {colour: sum(int(height) for height, each in bars if each == colour) for colour in ("red", "blue")}
        assert counts == {"red": len(values[::2]), "blue": len(values[1::2])}
        assert drawn.count("p50") == 1
        ticks = re.findall(r'left:([\d.]+)%"', drawn)
        assert all(0 <= float(tick) <= 100 for tick in ticks)


def test_stretches_and_outages_cover_what_they_name(flown) -> None:
    assert stretches(np.array([])) == []
    assert stretches(np.array([1, 1, 0, 2, 2, 2])) == [(0, 1), (2, 2), (3, 5)]
    finished = Finished(flown)
    for sensor in Sensor:
        covered = {tile for out in finished.outages(sensor) for tile in range(out.first, out.last + 1)}
        assert covered == set(np.flatnonzero(finished.shown[sensor] == Shown.DEAD).tolist())


def _options(bundle, paths) -> list[str]:
    return ["--bundle", str(bundle.root), *(word for s in Sensor for word in (f"--{s}", str(paths[s])))]
