"""STAC items: valid by the published schemas, and true by what rasterio and pystac say of the files."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

import engine
from engine import demo
from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from engine.rasters.footprint import footprint
from engine.rasters.georeference import Grid
from engine.stac.__main__ import main
from tests.conftest import make_scene
from tests.engine.runs import request_for, run_told

SCHEMAS = Path(__file__).parent / "stac_schemas"


@cache
def schemas() -> dict[str, Any]:
    """STAC's own come with pystac, those of extensions lie beside this test."""
    found = dict(get_local_schema_cache())
    for path in SCHEMAS.glob("*.json"):
        name, version = path.stem.rsplit("-", 1)
        found[f"https://stac-extensions.github.io/{name}/{version}/schema.json"] = json.loads(path.read_text())
    # mlm names 1.1.0, of whose classes 2.0.0 asks for everything but a description, which the test asks for
    classification = "https://stac-extensions.github.io/classification/{}/schema.json"
    found[classification.format("v1.1.0")] = found[classification.format("v2.0.0")]
    return found


def check(path: Path) -> dict[str, Any]:
    """The item, once every schema that it names takes it."""
    item = json.loads(path.read_text())
    resources = {name: Resource(contents=each, specification=DRAFT7) for name, each in schemas().items()}
    registry: Registry[Any] = Registry().with_resources(resources.items())
    core = f"https://schemas.stacspec.org/v{item['stac_version']}/item-spec/json-schema/item.json"
    for name in (core, *item["stac_extensions"]):
        Draft7Validator(schemas()[name], registry=registry).validate(item)
    read = pystac.Item.from_file(path)
    for asset in read.make_asset_hrefs_absolute().assets.values():
        assert Path(asset.href).is_file(), asset.href
    return item


def test_the_item_of_a_map_is_valid_and_true(toy_bundle, write_scene, tmp_path: Path) -> None:
    paths = write_scene(make_scene(70, 90))
    with rasterio.open(paths[Sensor.RGIR], "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2021:07:04 10:11:12")
    run_told(request_for(toy_bundle, paths, tmp_path / "map", probabilities=True))
    item = check(tmp_path / "map" / "item.json")
    with rasterio.open(tmp_path / "map" / "probabilities.tif") as file:
        assert item["properties"]["proj:code"] == file.crs.to_string()
        assert item["properties"]["proj:shape"] == [*file.shape]
        assert item["properties"]["proj:transform"] == [*file.transform][:6]
        np.testing.assert_allclose(item["bbox"], transform_bounds(file.crs, "EPSG:4326", *file.bounds), atol=1e-6)
        bands = item["assets"]["probabilities"]["raster:bands"]
        assert [each["name"] for each in bands] == [*file.descriptions]
        assert {(each["nodata"], each["scale"]) for each in bands} == {(file.nodata, file.scales[0])}
    assert item["properties"]["datetime"] == "2021-07-04T10:11:12Z"
    assert toy_bundle.digest in item["properties"]["processing:lineage"]
    classes = item["assets"]["classes"]["classification:classes"]
    assert [(each["value"], each["title"], each["color_hint"]) for each in classes] == [
        (index, spec.name, "{:02X}{:02X}{:02X}".format(*spec.rgb))
        for index, spec in enumerate(toy_bundle.manifest.classes)
    ]


def test_the_face_writes_an_item_without_a_place_where_there_is_none(toy_bundle, tmp_path: Path) -> None:
    with engine.load(toy_bundle.root, precision="fp32") as model:
        model.segment(ndsm=np.zeros((40, 50), np.float32)).save(tmp_path / "map")
    item = check(tmp_path / "map" / "item.json")
    assert item["geometry"] is None
    assert "bbox" not in item
    assert set(item["assets"]) >= {"classes", "confidence", "provenance", "quicklook.png"}
    assert "probabilities" not in item["assets"]


def test_the_item_of_a_bundle_is_valid_wherever_it_lies(toy_bundle: Bundle, tmp_path: Path, capsys) -> None:
    for root in (toy_bundle.root, demo.BUNDLE):
        path = tmp_path / "models" / f"{root.name}.json"
        assert main(["--bundle", str(root), "--out", str(path)]) == 0
        item = check(path)
        assert str(path) in capsys.readouterr().out
        (output,) = item["properties"]["mlm:output"]
        assert all(each["description"] for each in output["classification:classes"])
        graphs = {each["href"] for each in item["assets"].values() if "mlm:model" in each["roles"]}
        manifest = Bundle.load(root).manifest
        assert {os.path.basename(each) for each in graphs} == {  # noqa: PTH119
            ref.path for each in manifest.graphs.values() for ref in each.values()
        }


@pytest.mark.parametrize("rotated", [False, True])
def test_a_footprint_is_a_ring_against_the_clock_around_every_pixel(rotated) -> None:
    transform = from_origin(600000, 5100000, 20, 20)
    if rotated:
        transform *= rasterio.Affine.rotation(30)
    grid = Grid(width=500, height=300, crs=rasterio.CRS.from_epsg(32632), transform=transform)
    ring = footprint(grid)
    assert ring is not None
    assert ring[0] == ring[-1]
    assert sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) > 0
    corners = [grid.transform * corner for corner in ((0, 0), (500, 0), (500, 300), (0, 300))]
    longitudes, latitudes = rasterio.warp.transform(grid.crs, "EPSG:4326", *zip(*corners, strict=True))
    for place in zip(longitudes, latitudes, strict=True):
        assert np.abs(np.array(ring) - place).max(axis=1).min() < 1e-6
    assert footprint(Grid(width=5, height=5, crs=None, transform=None)) is None


def test_what_is_no_map_is_refused(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert main([]) == 2
    assert main([str(tmp_path), "--bundle", str(tmp_path)]) == 2


def test_without_a_tag_the_time_is_that_of_the_file(toy_bundle, write_scene, tmp_path: Path) -> None:
    paths = write_scene(make_scene(64, 64))
    at = datetime(2020, 5, 6, 7, 8, 9, tzinfo=UTC)
    os.utime(paths[Sensor.RGIR], (at.timestamp(),) * 2)
    run_told(request_for(toy_bundle, paths, tmp_path / "map"))
    assert check(tmp_path / "map" / "item.json")["properties"]["datetime"] == "2020-05-06T07:08:09Z"
