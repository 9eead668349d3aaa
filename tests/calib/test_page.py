"""The report says what the run found, and needs nothing beside it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from calib.contact_sheet import contact_sheet
from calib.findings import Evaluation, MethodScore, Range, Settings, Study
from calib.latency import GraphLatency, Timing
from calib.page import write_report
from calib.publish import publish
from calib.qdq import WeightedLayer
from calib.report import Report
from calib.samples import CalibrationList, choose
from calib.scenes import find_scenes, tiles_of
from calib.sensitivity import SearchStep, Sensitivity
from engine.contract.bundle import Bundle, ClassSpec, Confidence
from engine.contract.page.charts import Bar, Ruler, bars, points
from engine.contract.sensors import Scenario
from tests.calib.conftest import CLASSES, TILE_PX, network


def study_of(scenario: Scenario) -> Study:
    return Study(
        scenario=scenario,
        floating="fp16",
        layers=(
            WeightedLayer(name="enter", op="Conv", macs=100, int8=True),
            WeightedLayer(name="head", op="Conv", macs=25, int8=False),
        ),
        int8_share=0.8,
        methods=(MethodScore(method="max", mean_f1=80.0, damage=1e-3),),
        method="max",
        ranges=(Range(layer="enter", tensor="x", thresholds={"max": 4.0, "entropy": 2.0, "percentile": 3.0}),),
        sensitivity=(Sensitivity(layer="head", damage=1e-4, spared=9e-4),),
        steps=(
            SearchStep(released=(), mean_f1=79.0, loss_points=1.2, int8_share=1.0),
            SearchStep(released=("head",), mean_f1=80.0, loss_points=0.2, int8_share=0.8),
        ),
        evaluations=(
            Evaluation(precision="fp32", runtime="openvino", mean_f1=80.3, class_f1=(0.8,) * 4, agreement=1.0),
            Evaluation(precision="int8", runtime="openvino", mean_f1=80.1, class_f1=(0.7,) * 4, agreement=0.99),
            Evaluation(precision="int8", runtime="onnxruntime", mean_f1=80.0, class_f1=(0.7,) * 4, agreement=0.99),
        ),
    )


def timing_of(scenario: Scenario, int8_ms: float) -> Timing:
    common = {"floating": "f32", "computed": "f32", "nodes": 2}
    return Timing(
        scenario=scenario,
        latencies=(
            GraphLatency(precision="fp32", int8_nodes=0, median_ms=40.0, p90_ms=41.0, **common),
            GraphLatency(precision="int8", int8_nodes=1, median_ms=int8_ms, p90_ms=60.0, **common),
        ),
        threads=2,
        rounds=40,
        load=0.5,
    )


@pytest.fixture
def chosen(data: Path) -> CalibrationList:
    return choose(tiles_of(find_scenes(data), TILE_PX), 5, CLASSES)


@pytest.fixture
def report(chosen: CalibrationList, bundle: Bundle) -> Report:
    settings = Settings(
        calibration=chosen,
        search=chosen.tiles[:1],
        evaluation=chosen.tiles[1:2],
        sensitivity_tiles=1,
        methods=("max",),
        budget_points=0.5,
        min_int8_share=0.5,
    )
    published = publish(bundle, {scenario: network(scenario, seed=1) for scenario in Scenario}, {})
    times_ms = zip(Scenario, (20.0, 50.0, 25.0), strict=True)
    return Report.of(
        published,
        settings,
        [study_of(scenario) for scenario in Scenario],
        [timing_of(scenario, int8_ms) for scenario, int8_ms in times_ms],
        command=["--bundle", "<b>"],
    )


class Checker(HTMLParser):
    """Every tag is closed in order, and nothing is loaded from elsewhere."""

    VOID = frozenset({"br", "img", "meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(report: Report, chosen: CalibrationList, tmp_path: Path) -> None:
    page = write_report(report, chosen, tmp_path).read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert any(link.startswith("data:image/png;base64,") for link in checker.links)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in checker.links)
    assert "--bundle &lt;b&gt;" in page


def test_the_page_says_what_was_found(report: Report, chosen: CalibrationList, tmp_path: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", write_report(report, chosen, tmp_path).read_text())
    for expected in ("+0.30", "80.0%", "2.00 x fp32", "SLOWER than fp32 (0.80 x)", "class roof", chosen.sha256):
        assert expected in text, expected


def test_the_page_says_how_far_confidence_is_off(report: Report, chosen: CalibrationList, tmp_path: Path) -> None:
    assert "train.temperature" in write_report(report, chosen, tmp_path).read_text(), "how to fit what was not fitted"
    known = Confidence(scenario=Scenario.FULL, data="town", temperature=1.3, error_before=0.097, error_after=0.021)
    text = re.sub(r"<[^>]+>", " ", write_report(replace(report, confidence=(known,)), chosen, tmp_path).read_text())
    assert " ".join(text.split()).count("full town 1.30 9.7 2.1") == 1


def test_the_json_holds_the_same_report(report: Report, chosen: CalibrationList, tmp_path: Path) -> None:
    write_report(report, chosen, tmp_path)
    assert msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Report) == report
    assert report.calibration[0].sha256 == chosen.tiles[0].sha256
    assert report.studies[0].loss_points == pytest.approx(0.3)


def test_the_contact_sheet_shows_every_tile_with_its_labels(chosen: CalibrationList) -> None:
    classes = [ClassSpec(name=name, rgb=(60 * i, 255 - 60 * i, 90)) for i, name in enumerate(CLASSES)]
    encoded = contact_sheet(chosen, classes).split(",", 1)[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
    # Two rows of four cells: image, heights and labels side by side, 8 px between cells and 4 below.
    assert picture.shape == (2 * (TILE_PX + 4), 4 * (3 * TILE_PX + 8), 3)
    labels = chosen.tiles[0].read().labels
    expected = np.array([spec.rgb for spec in classes])[labels]
    drawn = picture[:TILE_PX, 2 * TILE_PX : 3 * TILE_PX].astype(int)
    assert np.abs(drawn - expected).mean() < 8, "the palette has 255 colours"


def test_bars_end_where_their_values_are() -> None:
    drawn = bars(
        "t", [Bar(label="a", value=1.0, text="1"), Bar(label="b", value=-0.5, text="<")], mark=Ruler(at=2.0, label="m")
    )
    rects = [(float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', drawn)]
    zero = rects[0][0]
    assert rects[1][0] + rects[1][1] == pytest.approx(zero, abs=0.2)
    assert rects[0][1] == pytest.approx(2 * rects[1][1], abs=0.3)
    assert "&lt;" in drawn


def test_points_share_one_logarithmic_axis() -> None:
    drawn = points("t", [("a", {"p": 1.0, "q": 10.0}), ("b", {"p": 100.0, "q": 10.0})], "m")
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="\d+" r="4" fill="[^"]+" fill-op', drawn)]
    assert places[1] == places[3]
    assert places[1] - places[0] == pytest.approx(places[2] - places[3], abs=0.2)
