"""Every option of a run holds for each unit of a list, and is part of what tells its results from others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import run as command
from engine.contract.bundle import Bundle
from engine.contract.errors import UsageError
from engine.contract.sensors import Sensor
from engine.fleet.__main__ import build_parser
from engine.fleet.lists import read_units
from engine.fleet.units import Extras, Unit, unit_key
from engine.request import PATTERN
from tests.conftest import make_scene

Write = Callable[..., dict[Sensor, Path]]
AREA = '{"type":"FeatureCollection","features":[]}'
CHANGES: dict[str, list[str]] = {
    "sensors": ["--sensors", "rgir"],
    "ground": ["--ground", "auto"],
    "rgir_bands": ["--rgir-bands", "3,2,1"],
    "ndsm_scale": ["--ndsm-scale", "0.1"],
    "stretch": ["--stretch", "percent"],
    "area": ["--area", "0,0,9,9"],
    "health": ["--health", "ndsm.max_height_m=80"],
    "audit_every": ["--audit-every", "7"],
    "backend": ["--backend", "onnxruntime"],
    "precision": ["--precision", "fp32"],
    "plans": ["--plans", "plans"],
    "halo": ["--halo", "8"],
    "blend": ["--blend", "none"],
    "gsd": ["--gsd", "off"],
    "probabilities": ["--probabilities"],
    "polygons": ["--polygons", "map.gpkg"],
    "smallest": ["--polygons", "map.gpkg", "--smallest", "20"],
    "simplify": ["--polygons", "map.gpkg", "--simplify", "0"],
    "report": ["--report"],
}
"""Options that change a byte of what is published."""
OF_THE_UNIT = {"rgir", "ndsm", "dsm", "dtm", "stac", "pattern", "bundle"}
"""The list says which, or the bundle's own digest does."""
REFUSED = {
    *("live", "partner_wait", "idle_exit", "live_driver", "rate", "inject", "metrics", "serve", "base_layer", "resume"),
    "when_behind",  # which needs --rate
}
NOT_IN_THE_RESULT = {
    *("help", "list", "shard", "speed", "price", "address", "cpus", "cut", "output", "overwrite", "dry_run"),
    *("threads", "readers", "hint", "watchdog", "deadline", "require_signature"),
    *("log_format", "log_level", "json", "quiet"),
}


def key(unit: Unit, bundle: Bundle, *words: str) -> str:
    options = build_parser().parse_args(["--list", "x.csv", "--bundle", str(bundle.root), *words])
    return unit_key(unit.request(options, Path()), bundle, Extras.of(options))


def test_every_option_is_in_the_key_of_a_unit_or_is_known_to_change_no_byte(toy_bundle: Bundle, tmp_path: Path) -> None:
    options = {action.dest for action in build_parser()._actions}
    assert options == {*CHANGES, *OF_THE_UNIT, *REFUSED, *NOT_IN_THE_RESULT}
    for name in ("rgir", "dsm", "dtm"):
        (tmp_path / f"{name}.tif").touch()
    pair = Unit(name="a", rasters=(("rgir", str(tmp_path / "rgir.tif")), ("dsm", str(tmp_path / "dsm.tif"))))
    plain = CHANGES["ground"]
    keys = {"": key(pair, toy_bundle, *plain)}
    for name, words in CHANGES.items():
        keys[name] = key(pair, toy_bundle, *plain, *words)
    with_dtm = Unit(name="a", rasters=(*pair.rasters, ("dtm", str(tmp_path / "dtm.tif"))))
    keys["ground"] = key(with_dtm, toy_bundle)
    assert len(set(keys.values())) == len(keys), keys
    assert key(with_dtm, toy_bundle, *plain) == keys["ground"]  # the ground that is given is not looked for
    assert key(pair, toy_bundle, *plain, "--threads", "1", "--readers", "3", "--deadline", "5") == keys[""]
    assert key(pair, toy_bundle, *plain, "--health", "audit.every_tiles=7") not in keys.values()


def test_an_area_that_is_drawn_anew_under_its_old_name_makes_another_key(toy_bundle: Bundle, tmp_path: Path) -> None:
    unit, area = Unit(name="a", rasters=(("rgir", "a.tif"),)), tmp_path / "area.geojson"
    area.write_text(AREA)
    before = key(unit, toy_bundle, "--area", str(area))
    area.write_text(AREA + "\n")
    assert key(unit, toy_bundle, "--area", str(area)) != before


def test_units_of_a_list_get_polygons_reports_and_probabilities(
    toy_bundle: Bundle, write_scene: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyogrio")
    paths = write_scene(make_scene(70, 90, seed=1), "scene")
    (tmp_path / "list.csv").write_text(f"rgir\n{paths[Sensor.RGIR]}\n")
    model = ["--list", str(tmp_path / "list.csv"), "--bundle", str(toy_bundle.root), "--quiet"]
    wanted = ["--polygons", "map.gpkg", "--report", "--probabilities", "--output", str(tmp_path / "maps")]
    assert command.main([*model, *wanted]) == 0
    (unit,) = (tmp_path / "maps").glob("*/unit.json")
    told = json.loads(unit.read_text())
    assert {"map.gpkg", "map.qml", "report.html", "probabilities.tif"} <= set(told["files"])
    assert command.main([*model, "--output", str(tmp_path / "maps")]) == 9  # made with other options
    assert command.main([*model, "--polygons", "there/map.gpkg", "--output", str(tmp_path / "more")]) == 2
    assert "names a file in each unit's folder" in capsys.readouterr().err


def stac(folder: Path, name: str, **more: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"type": "Catalog", "stac_version": "1.1.0", "id": path.stem, "description": "", "links": [], **more}
    path.write_text(json.dumps(told))
    return path


def test_a_stac_collection_is_a_list_of_its_items_and_a_broken_child_costs_no_other(
    toy_bundle: Bundle, write_scene: Write, tmp_path: Path
) -> None:
    pytest.importorskip("pystac")
    scenes = [write_scene(make_scene(70, 90, seed=seed), f"scene{seed}") for seed in range(2)]
    for number, scene in enumerate(scenes):
        bands = [{"name": each, "eo:common_name": each} for each in ("nir", "red", "green")]
        assets = {
            "image": {"href": str(scene[Sensor.RGIR]), "bands": bands},
            "ndsm": {"href": str(scene[Sensor.NDSM])},
        }
        properties = {"datetime": "2026-05-01T00:00:00Z"}
        item = {"type": "Feature", "geometry": None, "assets": assets, "properties": properties}
        stac(tmp_path, ("north/s0/item.json", "s1.json")[number], **item)
    stac(tmp_path, "north/catalog.json", links=[{"rel": "item", "href": "./s0/item.json"}])
    (tmp_path / "bad.json").write_text("{")
    links = [{"rel": "item", "href": "./s1.json"}, {"rel": "child", "href": "./north/catalog.json"}]
    links += [{"rel": "child", "href": "./bad.json"}, {"rel": "child", "href": "./all.json"}]
    collection = stac(tmp_path, "all.json", links=links)
    units = read_units(collection, sensor=None, pattern=PATTERN)
    assert sorted(unit.name for unit in units if not unit.broken) == ["s0", "s1"]
    (broken,) = (unit.broken for unit in units if unit.broken)
    assert "bad.json cannot be read" in broken
    output = tmp_path / "maps"
    model = ["--bundle", str(toy_bundle.root), "--quiet", "--precision", "fp32", "--output", str(output)]
    assert command.main(["--list", str(collection), *model]) == 9
    pairs = [",".join(str(scene[sensor]) for sensor in Sensor) for scene in scenes]
    (tmp_path / "pairs.csv").write_text("\n".join(["rgir,ndsm", *pairs]))
    assert command.main(["--list", str(tmp_path / "pairs.csv"), *model[:-1], str(tmp_path / "csv")]) == 0
    for number in range(2):
        mine, theirs = (output / f"s{number}", tmp_path / "csv" / f"scene{number}")
        assert (mine / "classes.tif").read_bytes() == (theirs / "classes.tif").read_bytes()


@pytest.mark.parametrize("content", ["{", "[]", '{"type": "Feature collection"}', '{"type": "Catalog"}'])
def test_a_broken_collection_is_one_line(tmp_path: Path, content: str) -> None:
    pytest.importorskip("pystac")
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(UsageError, match=r"cannot be read|lists no items|names no raster") as caught:
        read_units(tmp_path / "list.json", sensor=None, pattern=PATTERN)
    assert "\n" not in str(caught.value)
