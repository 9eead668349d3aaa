"""Parts of rasters: which pixels, on which grid, and what is read."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom

import engine
from engine.contract.errors import GridError, InterruptedRunError, RasterFormatError, RasterOpenError, UsageError
from engine.contract.sensors import Provenance, Sensor
from engine.grid import Window
from engine.rasters.area import place
from engine.rasters.georeference import Grid
from engine.run import main
from tests.conftest import make_scene, toy_map
from tests.engine.runs import Watcher, request_for, run_told

MAPS = ("classes.tif", "confidence.tif", "provenance.tif")
LAMBERT = CRS.from_epsg(2154)
GRID = Grid(width=300, height=200, crs=LAMBERT, transform=Affine(0.2, 0, 650000, 0, -0.2, 6860000))
"""That of :func:`tests.conftest.write_scene`."""
LAKE = shapely.Polygon(
    [(650010.03, 6859989.97), (650040.04, 6859985.02), (650049.98, 6859970.05), (650020.06, 6859965.01)],
    [[(650020.07, 6859985.03), (650030.05, 6859980.02), (650025.04, 6859975.06)]],
)
"""Its edges pass no pixel's centre."""


def write(path: Path, *shapes: shapely.Geometry, crs: object = LAMBERT, **options: object) -> Path:
    geopandas.GeoDataFrame(geometry=list(shapes), crs=crs).to_file(path, engine="pyogrio", **options)
    return path


def mask_of(shapes: list, grid: Grid = GRID) -> NDArray[np.bool_]:
    """By rasterio, on the whole raster."""
    return geometry_mask(shapes, (grid.height, grid.width), grid.transform, invert=True)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".shp"])
@pytest.mark.parametrize("crs", [2154, 4326, 32631])
def test_a_polygon_of_any_format_and_crs_is_rasterios_mask(suffix, crs, tmp_path) -> None:
    shapes = [LAKE, shapely.box(650000, 6859960, 650004, 6859964), shapely.box(640000, 6850000, 640010, 6850010)]
    frame = geopandas.GeoDataFrame(geometry=shapes, crs=2154).to_crs(crs)
    frame.to_file(tmp_path / f"area{suffix}", engine="pyogrio")
    area = place(tmp_path / f"area{suffix}", GRID)
    projected = [transform_geom(f"EPSG:{crs}", "EPSG:2154", shapely.geometry.mapping(each)) for each in frame.geometry]
    expected = mask_of(projected)
    rows, cols = np.flatnonzero(expected.any(axis=1)), np.flatnonzero(expected.any(axis=0))
    window = area.window
    assert window.row <= rows[0] < window.row + 2
    assert window.col <= cols[0] < window.col + 2
    assert rows[-1] < window.row + window.height <= rows[-1] + 3
    assert cols[-1] < window.col + window.width <= cols[-1] + 3
    found = area.inside(Window(row=0, col=0, height=200, width=300))
    assert (found != expected).sum() <= (1 if suffix == ".geojson" else 0)  # whose coordinates are rounded
    part = Window(row=37, col=61, height=90, width=103)
    np.testing.assert_array_equal(area.inside(part), found[37:127, 61:164])


def test_edges_bend_as_the_projection_does() -> None:
    grid = Grid(width=2000, height=2000, crs=LAMBERT, transform=Affine(500, 0, 100000, 0, -500, 7100000))
    found = place("-1,45,7,49@EPSG:4326", grid).inside(Window(row=0, col=0, height=2000, width=2000))
    edge = np.linspace(-1, 7, 2001)
    corners = [*((x, 45) for x in edge), *((x, 49) for x in edge[::-1])]
    fine = transform_geom("EPSG:4326", "EPSG:2154", shapely.geometry.mapping(shapely.Polygon(corners)))
    straight = transform_geom("EPSG:4326", "EPSG:2154", shapely.geometry.mapping(shapely.box(-1, 45, 7, 49)))
    expected = mask_of([fine], grid)
    assert (found != expected).mean() < 1e-4
    assert (mask_of([straight], grid) != expected).mean() > 3e-3


@pytest.mark.parametrize("blend", ["none", "hann"])
@pytest.mark.parametrize("gsd", ["off", 0.4])
def test_only_the_area_is_mapped_on_its_bounds(blend, gsd, toy_bundle, write_scene, tmp_path) -> None:
    scene = make_scene(200, 300)
    area = write(tmp_path / "lake.gpkg", LAKE)
    watcher = Watcher()
    request = request_for(toy_bundle, write_scene(scene), tmp_path / "out", blend=blend, area=area, gsd=gsd)
    run = run_told(request, watcher)
    inside, expected = mask_of([LAKE]), toy_map(*scene)
    with rasterio.open(tmp_path / "out" / "classes.tif") as file:
        assert file.bounds == pytest.approx((650010, 6859965, 650050, 6859990))  # as LAKE, on whole pixels
        row, col = run["area"]["row"], run["area"]["col"]
        at = np.s_[row : row + file.height, col : col + file.width]
        classes = file.read(1)
    with rasterio.open(tmp_path / "out" / "provenance.tif") as file:
        provenance = file.read(1)
    np.testing.assert_array_equal(provenance, np.where(inside, expected[2], Provenance.NONE)[at])
    if gsd == "off":
        assert (classes == np.where(inside, expected[0], 255)[at]).mean() > 0.9995
    assert run["result"]["provenance_pixels"]["full"] == (expected[2][inside] == Provenance.FULL).sum()
    assert run["tiles_lost"] == 0


def test_tiles_that_do_not_touch_it_are_not_read(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(make_scene(600, 600, holes=False))
    area = write(
        tmp_path / "corners.gpkg",
        shapely.box(650000, 6859995, 650005, 6860000),
        shapely.box(650115, 6859880, 650120, 6859885),
    )
    watcher = Watcher()
    run = run_told(request_for(toy_bundle, paths, tmp_path / "out", area=area, watch=True), watcher)
    assert run["tiling"]["tiles"] > 100
    mask = np.zeros((600, 600), bool)
    mask[:25, :25] = mask[575:, 575:] = True
    whole = Window(row=0, col=0, height=600, width=600)
    touching = sum(mask[tile.target.within(whole)].any() for tile in watcher.plan.stitcher().tiles())
    assert sum(run["result"]["inferences"].values()) == touching == sum(run["health"]["states"]["rgir"].values()) < 6
    assert run["tiles_lost"] == 0


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bytes_and_refuses_another_area(toy_bundle, write_scene, tmp_path) -> None:
    paths, area = write_scene(make_scene(200, 300)), write(tmp_path / "lake.gpkg", LAKE)
    run_told(request_for(toy_bundle, paths, tmp_path / "whole", area=area), Watcher())
    with pytest.raises(InterruptedRunError):
        run_told(request_for(toy_bundle, paths, tmp_path / "out", area=area), Watcher(6))
    box = "650010,6859965,650050,6859990"
    with pytest.raises(engine.EngineError, match="differs: inputs"):
        run_told(request_for(toy_bundle, paths, tmp_path / "out", area=box, resume=True), Watcher())
    run_told(request_for(toy_bundle, paths, tmp_path / "out", area=area, resume=True), Watcher())
    for name in (*MAPS, "quicklook.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_library_takes_a_box(toy_bundle, write_scene) -> None:
    scene = make_scene(200, 300)
    paths = write_scene(scene)
    with engine.load(toy_bundle.root, precision="fp32") as model:
        result = model.segment(
            rgir=paths[Sensor.RGIR], ndsm=paths[Sensor.NDSM], area=(650010.0, 6859970.0, 650030.0, 6859980.0)
        )
        with pytest.raises(GridError, match="needs a raster with a geotransform"):
            model.segment(rgir=scene[0][Sensor.RGIR], area=(0.0, 0.0, 10.0, 10.0))
    np.testing.assert_array_equal(result.provenance, toy_map(*scene)[2][100:150, 50:150])


@pytest.mark.parametrize(
    ("area", "error", "says"),
    [
        ("1,2,3", RasterOpenError, "does not exist: pass a file, or left,bottom,right,top"),
        ("650010,6859990,650000,6859999", UsageError, "left < right and bottom < top"),
        ("2,48,3,49@EPSG:0", UsageError, "names a CRS after @"),
        ("2,48,3,49", GridError, r"must lie on the raster; 2,48,3,49 covers x 2\.\.3, y 48\.\.49"),
        ("{tmp}/points.gpkg", RasterFormatError, "has no layer of polygons"),
        ("{tmp}/two.gpkg", RasterFormatError, r"has one, other: name one, as in `area` .*\|layername=NAME"),
        ("{tmp}/two.gpkg|layername=third", RasterOpenError, "third"),
        ("{tmp}/text.gpkg", RasterOpenError, "is no vector file that GDAL can read"),
        ("-180,-90,180,90@EPSG:4326", GridError, r"no way is known from EPSG:4326 of .* to EPSG:2154"),
    ],
)
def test_an_area_that_cannot_be_used_is_told_in_one_line(area, error, says, tmp_path) -> None:
    write(tmp_path / "points.gpkg", shapely.Point(1, 2))
    write(tmp_path / "two.gpkg", LAKE, layer="one")
    write(tmp_path / "two.gpkg", LAKE, layer="other")
    (tmp_path / "text.gpkg").write_text("lake")
    with pytest.raises(error, match=says) as caught:
        place(area.format(tmp=tmp_path), GRID)
    assert "\n" not in str(caught.value)


def test_one_of_several_layers_is_named(tmp_path) -> None:
    write(tmp_path / "two.gpkg", LAKE, layer="one")
    write(tmp_path / "two.gpkg", shapely.box(650000, 6859990, 650010, 6860000), layer="other")
    assert place(f"{tmp_path}/two.gpkg|layername=other", GRID).window == Window(row=0, col=0, height=50, width=50)


def test_a_file_without_a_crs_is_taken_to_have_the_rasters(tmp_path, caplog) -> None:
    area = place(write(tmp_path / "lake.shp", LAKE, crs=None), GRID)
    assert (area.inside(Window(row=0, col=0, height=200, width=300)) == mask_of([LAKE])).all()
    assert "does not name its CRS" in caplog.text


def test_the_command_refuses_before_anything_is_written(toy_bundle, write_scene, tmp_path, capsys) -> None:
    paths = write_scene(make_scene(64, 64))
    given = ["--bundle", str(toy_bundle.root), "--output", str(tmp_path / "out")]
    assert main([*given, "--rgir", str(paths[Sensor.RGIR]), "--area", "1,2,3,4"]) == 3
    assert "error: --area must lie on the raster" in capsys.readouterr().err
    assert main([*given, "--live", str(tmp_path), "--area", "1,2,3,4"]) == 2
    assert "leave --area away" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    box = "650000,6859990,650010,6860000"
    assert main([*given, "--rgir", str(paths[Sensor.RGIR]), "--area", box, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["grid"]["width"], told["area"]["polygons"]) == (50, 1)
