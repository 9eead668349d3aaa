"""Polygons of a map: the raster itself is the oracle."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio import features
from rasterio.transform import Affine, from_origin

from engine.contract.bundle import ClassSpec
from engine.contract.sensors import Provenance
from engine.ownership import mark
from engine.polygons.__main__ import main
from engine.rasters import polygons
from engine.rasters.cog import MapWriter
from engine.rasters.georeference import Grid
from engine.rasters.map_reader import MapReader
from engine.rasters.polygons import areas
from engine.run import main as run_command
from tests.conftest import make_scene

CLASSES = tuple(
    ClassSpec(name=name, rgb=(40 * k, 90, 200 - 40 * k)) for k, name in enumerate(("street", "roof", "tree"))
)
HEIGHT, WIDTH = 120, 90


def classes_of(seed: int, *, coarse_px: int = 4) -> np.ndarray:
    """Blobs of three classes and nodata, many of which cross every row."""
    rng = np.random.default_rng(seed)
    small = rng.choice(np.array([0, 0, 0, 1, 2, 255], np.uint8), (HEIGHT // coarse_px, WIDTH // coarse_px + 1))
    return np.kron(small, np.ones((coarse_px, coarse_px), np.uint8))[:HEIGHT, :WIDTH].astype(np.uint8)


def write_maps(folder: Path, classes: np.ndarray, transform: Affine | None = None) -> Path:
    rng = np.random.default_rng(7)
    confidence = rng.integers(1, 256, classes.shape, np.uint8)
    provenance = rng.integers(1, 4, classes.shape, np.uint8)
    confidence[classes == 255] = provenance[classes == 255] = 0
    transform = from_origin(500000, 5000000, 0.5, 0.5) if transform is None else transform
    for name, values, nodata in (
        ("classes", classes, 255),
        ("confidence", confidence, 0),
        ("provenance", provenance, 0),
    ):
        with rasterio.open(
            folder / f"{name}.tif",
            "w",
            driver="GTiff",
            count=1,
            dtype="uint8",
            height=classes.shape[0],
            width=classes.shape[1],
            nodata=nodata,
            crs="EPSG:32632",
            transform=transform,
        ) as file:
            file.write(values, 1)
            if name == "classes":
                file.write_colormap(1, {k: (*spec.rgb, 255) for k, spec in enumerate(CLASSES)})
                file.update_tags(**{f"CLASS_{k}": spec.name for k, spec in enumerate(CLASSES)})
    return folder


@pytest.mark.parametrize("rows", [1, 7, HEIGHT])
def test_polygons_drawn_again_are_the_map_whatever_the_strips(tmp_path, rows) -> None:
    classes = classes_of(1)
    with MapReader(write_maps(tmp_path, classes)) as maps:
        found = [area for area, _ in areas(maps, strip_px=rows * WIDTH)]
    drawn = features.rasterize(
        [(area.geometry, area.class_index) for area in found], out_shape=classes.shape, fill=255, dtype="uint8"
    )
    assert (drawn == classes).all()
    assert all(shapely.is_valid(area.geometry) for area in found)
    assert sum(area.geometry.area for area in found) == (classes != 255).sum() == sum(area.pixels for area in found)
    connected = sum(1 for _ in features.shapes(classes, mask=classes != 255, connectivity=4))
    assert len(found) == connected, "an area that crosses strips is one polygon"


def test_confidence_and_provenance_are_those_of_the_pixels(tmp_path) -> None:
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[30:70, 20:50] = 1
    with MapReader(write_maps(tmp_path, classes)) as maps:
        (roof,) = [area for area, _ in areas(maps, strip_px=11 * WIDTH) if area.class_index == 1]
    confidence, provenance = (rasterio.open(tmp_path / f"{n}.tif").read(1) for n in ("confidence", "provenance"))
    inside = classes == 1
    assert roof.pixels == inside.sum()
    assert roof.confidence == pytest.approx(confidence[inside].mean() / 255)
    both, rgir, ndsm = roof.shares
    assert both == pytest.approx((provenance[inside] == Provenance.FULL).mean())
    assert rgir == pytest.approx((provenance[inside] == Provenance.MISSING_NDSM).mean())
    assert ndsm == pytest.approx((provenance[inside] == Provenance.MISSING_RGIR).mean())


@pytest.mark.parametrize("rows", [13, HEIGHT])
def test_simplified_neighbours_neither_overlap_nor_gape(tmp_path, rows) -> None:
    classes = classes_of(3, coarse_px=6)
    with MapReader(write_maps(tmp_path, classes)) as maps:
        found = [area for area, _ in areas(maps, smallest_px=20, tolerance_px=1.5, strip_px=rows * WIDTH)]
    total = shapely.union_all([area.geometry for area in found])
    assert all(shapely.is_valid(area.geometry) for area in found)
    assert shapely.coverage_is_valid([area.geometry for area in found]), "neighbours lack corners of each other"
    assert sum(area.geometry.area for area in found) == pytest.approx(total.area, rel=1e-9), "they overlap"
    for index in range(len(CLASSES)):
        mapped = sum(area.pixels for area in found if area.class_index == index)
        assert sum(a.geometry.area for a in found if a.class_index == index) == pytest.approx(mapped, rel=0.1)
    assert sum(shapely.get_num_coordinates(area.geometry) for area in found) < 6 * len(found) + 600


def test_an_area_of_too_many_corners_comes_in_pieces_that_fit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(polygons, "MOST_CORNERS", 60)
    classes = classes_of(1)
    with MapReader(write_maps(tmp_path, classes)) as maps:
        found = [area for area, _ in areas(maps, strip_px=12 * WIDTH)]
    drawn = features.rasterize(
        [(area.geometry, area.class_index) for area in found], out_shape=classes.shape, fill=255, dtype="uint8"
    )
    assert (drawn == classes).all()
    assert sum(area.pixels for area in found) == (classes != 255).sum()
    assert len(found) > sum(1 for _ in features.shapes(classes, mask=classes != 255, connectivity=4))
    assert shapely.coverage_is_valid([area.geometry for area in found])


def test_small_areas_go_to_their_largest_neighbour(tmp_path) -> None:
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[40:43, 40:43] = 2
    classes[80:90, 40:50] = 1
    with MapReader(write_maps(tmp_path, classes)) as maps:
        for rows in (41, HEIGHT):
            found = [area for area, _ in areas(maps, smallest_px=10, strip_px=rows * WIDTH)]
            assert sorted((area.class_index, area.pixels) for area in found) == [(0, HEIGHT * WIDTH - 100), (1, 100)]


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_each_format_is_read_back_by_geopandas_where_the_map_lies(tmp_path, suffix, capsys) -> None:
    classes = classes_of(5, coarse_px=10)
    write_maps(tmp_path, classes)
    path = tmp_path / f"cover{suffix}"
    left = tmp_path / f".{path.name}.unfinished"
    left.mkdir()
    mark(left, f"unfinished {path.name}")
    (left / "areas.gpkg").write_bytes(b"torn")  # by a power cut
    assert main([str(tmp_path), "--out", str(path), "--smallest", "1", "--simplify", "0"]) == 0
    frame = geopandas.read_parquet(path) if suffix == ".parquet" else geopandas.read_file(path)
    assert f"{len(frame)} polygons" in capsys.readouterr().out
    assert frame.crs.to_epsg() == 32632
    drawn = features.rasterize(
        zip(frame.geometry, frame["class_index"], strict=True),
        out_shape=classes.shape,
        fill=255,
        dtype="uint8",
        transform=from_origin(500000, 5000000, 0.5, 0.5),
    )
    assert (drawn == classes).all()
    for index, spec in enumerate(CLASSES):
        assert set(frame.loc[frame["class_index"] == index, "class"]) <= {spec.name}
        assert frame.loc[frame["class"] == spec.name, "area_m2"].sum() == pytest.approx((classes == index).sum() * 0.25)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_maps_of_a_run_have_a_grid(tmp_path) -> None:
    grid = Grid(width=64, height=64, crs=None, transform=None)
    (tmp_path / "spools").mkdir()
    writer = MapWriter.create(tmp_path / "spools", grid, CLASSES, resume=False)
    writer.publish(tmp_path / "map")
    with MapReader(tmp_path / "map") as maps:
        assert (maps.grid.width, maps.grid.height, maps.grid.transform) == (64, 64, None)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--out", "cover.shp"], 2, "polygons are written as .gpkg, .fgb, .parquet; received 'cover.shp'"),
        (["--smallest", "0"], 2, "--smallest is at least 1 and"),
        (["--simplify", "nan"], 2, "--simplify lies in [0, 100),"),
    ],
)
def test_wrong_options_are_explained(tmp_path, capsys, options, code, named) -> None:
    write_maps(tmp_path, classes_of(1))
    assert main([str(tmp_path), *options]) == code
    assert named in capsys.readouterr().err


def test_a_missing_extra_names_its_install_command(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "engine.polygons.vector_file", raising=False)
    monkeypatch.setitem(sys.modules, "geopandas", None)
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: polygons need geopandas: pip install 'gemmnet-edge[gis]'"


def test_what_is_there_is_not_replaced_and_what_is_no_map_is_refused(tmp_path, capsys) -> None:
    assert main([str(tmp_path)]) == 3
    assert "a finished run holds classes.tif" in capsys.readouterr().err
    write_maps(tmp_path, classes_of(1))
    (tmp_path / "polygons.gpkg").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "polygons.gpkg").read_text() == "mine"
    write_maps(tmp_path, np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert main([str(tmp_path), "--overwrite"]) == 4
    assert "holds no polygons of this project" in capsys.readouterr().err
    assert (tmp_path / "polygons.gpkg").read_text() == "mine"
    assert main([str(tmp_path), "--out", str(tmp_path / "other.fgb")]) == 4
    assert "every pixel is nodata" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_polygons_of_ours_are_replaced_and_a_style_of_others_is_not(tmp_path, suffix, capsys) -> None:
    write_maps(tmp_path, classes_of(1))
    path = tmp_path / f"cover{suffix}"
    assert main([str(tmp_path), "--out", str(path)]) == 0
    style = ElementTree.parse(path.with_suffix(".qml")).getroot()
    assert [each.get("value") for each in style.iter("category")] == [spec.name for spec in CLASSES]
    path.with_suffix(".qml").write_text("mine")
    write_maps(tmp_path, np.zeros((HEIGHT, WIDTH), np.uint8))
    assert main([str(tmp_path), "--out", str(path), "--overwrite"]) == 0
    assert "1 polygons" in capsys.readouterr().out
    assert path.with_suffix(".qml").read_text() == "mine"


def test_a_run_writes_the_polygons_of_its_map(toy_bundle, write_scene, tmp_path, capsys) -> None:
    paths = write_scene(make_scene(149, 211, holes=False))
    options = [f"--bundle={toy_bundle.root}", f"--output={tmp_path / 'map'}", "--quiet", "--sensors=rgir,ndsm"]
    options += [f"--{sensor}={path}" for sensor, path in paths.items()]
    path = tmp_path / "cover.gpkg"
    assert run_command([*options, f"--polygons={path}", "--smallest=1", "--simplify=0"]) == 0
    frame = geopandas.read_file(path)
    with rasterio.open(tmp_path / "map" / "classes.tif") as file:
        drawn = features.rasterize(
            zip(frame.geometry, frame["class_index"], strict=True), file.shape, transform=file.transform, dtype="uint8"
        )
        assert (drawn == file.read(1)).all()
    assert run_command([*options, f"--polygons={path}", "--overwrite", "--smallest=200"]) == 0
    assert len(geopandas.read_file(path)) < len(frame)
    capsys.readouterr()
    for wrong, code, told in (
        ([f"--polygons={path}"], 2, "exists: pass --overwrite"),
        (["--polygons=cover.shp"], 2, "received 'cover.shp'"),
    ):
        assert run_command([*options[:1], f"--output={tmp_path / 'other'}", *options[2:], *wrong]) == code
        assert told in capsys.readouterr().err
        assert not (tmp_path / "other").exists(), "told before anything is mapped"
    live = ["--live", str(tmp_path), f"--output={tmp_path / 'other'}", "--polygons=x.gpkg"]
    assert run_command(live) == 2


def test_a_map_smaller_than_the_smallest_area_is_one(tmp_path) -> None:
    write_maps(tmp_path, np.zeros((2, 3), np.uint8))
    for smallest in (10, 10**20):
        with MapReader(tmp_path) as maps:
            assert [area.pixels for area, _ in areas(maps, smallest_px=smallest)] == [6]


def test_pipes_are_neither_maps_nor_polygons(tmp_path, capsys) -> None:
    write_maps(tmp_path, classes_of(5, coarse_px=10))
    os.mkfifo(tmp_path / "polygons.gpkg")
    assert main([str(tmp_path), "--overwrite"]) == 4
    (tmp_path / "classes.tif").unlink()
    os.mkfifo(tmp_path / "classes.tif")
    assert main([str(tmp_path), "--out", str(tmp_path / "a.gpkg")]) == 3
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error", "error"]
