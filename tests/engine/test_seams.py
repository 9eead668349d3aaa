"""The seam score, against a count that a few lines of numpy make of the whole map at once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from engine.contract.bundle import ClassSpec
from engine.contract.errors import RasterOpenError
from engine.contract.sensors import Provenance
from engine.grid import TileGrid, Window
from engine.rasters.cog import MapWriter
from engine.rasters.georeference import Grid
from engine.rasters.map_reader import MapReader
from engine.report.seams import SeamScore, SeamSurvey, survey

CLASSES = (ClassSpec(name="a <b>", rgb=(255, 0, 0)), ClassSpec(name="c", rgb=(0, 9, 255)))


def publish(folder: Path, classes, confidence=None, provenance=None) -> Path:
    """Maps of these pixels."""
    height, width = classes.shape
    layers = [
        classes.astype(np.uint8),
        np.full(classes.shape, 200, np.uint8) if confidence is None else confidence,
        np.full(classes.shape, Provenance.FULL, np.uint8) if provenance is None else provenance,
    ]
    grid = Grid(width=width, height=height, crs=None, transform=None)
    with MapWriter.create(folder / "spools", grid, CLASSES, resume=False) as writer:
        writer.write(0, 0, *layers)
        writer.publish(folder)
    return folder


def look(folder: Path, tiles: TileGrid) -> SeamSurvey:
    with MapReader(folder) as maps:
        return survey(maps, tiles)


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Two classes in patches of a few pixels, without any regard to tiles."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(height + 4, width + 4))
    smooth = sum(smooth[row : row + height, col : col + width] for row in range(5) for col in range(5))
    return (smooth > 0).astype(np.uint8)


def expected_score(classes, provenance, tiles: TileGrid) -> tuple[int, int, float]:
    """Pairs across borders, those that differ and those expected to, of pixels mapped from the same sensors."""
    pairs = differing = 0
    expected = 0.0
    for class_map, source, across, along in (
        (classes, provenance, tiles.cols, tiles.rows),
        (classes.T, provenance.T, tiles.rows, tiles.cols),
    ):
        same = (source[:, :-1] == source[:, 1:]) & (source[:, 1:] != Provenance.NONE)
        differ = same & (class_map[:, :-1] != class_map[:, 1:])
        for strip in range(along.count):
            rows = slice(along.boundary(strip), along.boundary(strip + 1))
            for border in range(1, across.count):
                at = across.boundary(border)
                inner = [
                    slice(across.boundary(border - 1), at - 1),
                    slice(at, across.boundary(border + 1) - 1),
                ]
                inside = sum(int(same[rows, each].sum()) for each in inner)
                edges = sum(int(differ[rows, each].sum()) for each in inner)
                here = int(same[rows, at - 1].sum())
                pairs += here
                differing += int(differ[rows, at - 1].sum())
                expected += here * edges / inside
    return pairs, differing, expected


@pytest.mark.parametrize(("height", "width"), [(300, 420), (64, 500), (410, 64), (131, 137)])
def test_every_pair_is_counted_once(tmp_path, height: int, width: int) -> None:
    classes, tiles = blobs(height, width), TileGrid(height=height, width=width, tile_px=64, halo_px=8)
    rng = np.random.default_rng(1)
    provenance = rng.choice(4, (height // 30 + 1, width // 30 + 1)).repeat(30, 0).repeat(30, 1)[:height, :width]
    confidence = rng.integers(0, 256, (height, width), np.uint8)
    seen = look(publish(tmp_path, classes, confidence, provenance.astype(np.uint8)), tiles)
    pairs, differing, expected = expected_score(classes, provenance, tiles)
    assert (seen.same_sensors.pairs, seen.same_sensors.differing) == (pairs, differing)
    assert seen.same_sensors.expected == pytest.approx(expected)
    for source in Provenance:
        counts = np.bincount(confidence[provenance == source], minlength=256)
        np.testing.assert_array_equal(seen.confidence[source], counts)


def test_a_scene_without_seams_scores_one(tmp_path) -> None:
    tiles = TileGrid(height=700, width=700, tile_px=64, halo_px=8)
    seen = look(publish(tmp_path, blobs(700, 700)), tiles)
    low, high = seen.same_sensors.interval
    assert low < 1 < high
    assert seen.same_sensors.score == pytest.approx(1, abs=0.1)
    assert seen.same_sensors.segments == 2 * len(tiles) - tiles.rows.count - tiles.cols.count
    assert seen.other_sensors == SeamScore()
    assert math.isnan(seen.other_sensors.score)


def test_tiles_that_were_mapped_by_themselves_score_far_above_one(tmp_path) -> None:
    tiles = TileGrid(height=700, width=700, tile_px=64, halo_px=8)
    classes = np.zeros((700, 700), np.uint8)
    for tile in tiles.tiles():
        window = tile.target
        place = window.within(Window(row=0, col=0, height=700, width=700))
        classes[place] = blobs(window.height, window.width, seed=tile.index)
    score = look(publish(tmp_path, classes), tiles).same_sensors
    inner = 1 - np.mean(classes[:, 70:100] == classes[:, 71:101])
    assert score.score == pytest.approx(0.5 / inner, rel=0.15)  # across a border half of the pairs differ by chance
    assert score.interval[0] > 1.5


def test_a_switch_of_sensors_is_counted_apart(tmp_path) -> None:
    """Class and provenance change together along one tile border and nowhere else."""
    tiles = TileGrid(height=64, width=256, tile_px=64, halo_px=8)
    border = tiles.cols.boundary(2)
    classes = blobs(64, 256)
    classes[:, border - 1], classes[:, border] = 0, 1
    provenance = np.full(classes.shape, Provenance.FULL, np.uint8)
    provenance[:, border:] = Provenance.MISSING_NDSM
    seen = look(publish(tmp_path, classes, provenance=provenance), tiles)
    assert (seen.other_sensors.segments, seen.other_sensors.pairs, seen.other_sensors.differing) == (1, 64, 64)
    assert seen.other_sensors.score > 3
    assert all(math.isnan(each) for each in seen.other_sensors.interval), "one segment says nothing about spread"
    assert seen.same_sensors.segments == tiles.cols.count - 2


def test_what_is_not_mapped_does_not_count(tmp_path) -> None:
    tiles = TileGrid(height=64, width=256, tile_px=64, halo_px=8)
    classes = blobs(64, 256)
    provenance = np.full(classes.shape, Provenance.FULL, np.uint8)
    provenance[:, 100:] = Provenance.NONE
    classes[:, 100:] = 255
    seen = look(publish(tmp_path, classes, provenance=provenance), tiles)
    assert seen.same_sensors.pairs == 64
    assert seen.other_sensors.pairs == 0


def test_one_tile_and_one_class_have_no_score(tmp_path) -> None:
    one = look(publish(tmp_path / "one", blobs(60, 60)), TileGrid(height=60, width=60, tile_px=64, halo_px=8))
    assert one.same_sensors == SeamScore()
    plain = look(
        publish(tmp_path / "plain", np.zeros((200, 200))), TileGrid(height=200, width=200, tile_px=64, halo_px=8)
    )
    assert (plain.same_sensors.differing, plain.same_sensors.expected) == (0, 0)
    assert math.isnan(plain.same_sensors.score)
    assert plain.interior_pairs > 0


def test_the_interval_holds_the_truth_nineteen_times_out_of_twenty(tmp_path) -> None:
    tiles = TileGrid(height=700, width=700, tile_px=64, halo_px=8)
    hits = 0
    for seed in range(25):
        low, high = look(publish(tmp_path / str(seed), blobs(700, 700, seed)), tiles).same_sensors.interval
        hits += low < 1 < high
    assert hits >= 20  # a right interval has fewer with a probability of 0.001


def test_surveys_of_several_maps_add_up(tmp_path) -> None:
    tiles = TileGrid(height=300, width=300, tile_px=64, halo_px=8)
    parts = [look(publish(tmp_path / str(seed), blobs(300, 300, seed)), tiles) for seed in range(3)]
    whole = parts[0] + parts[1] + parts[2]
    assert whole.same_sensors.segments == sum(part.same_sensors.segments for part in parts)
    assert whole.confidence.sum() == 3 * 300 * 300
    low, high = whole.same_sensors.interval
    assert high - low < min(part.same_sensors.interval[1] - part.same_sensors.interval[0] for part in parts)


def test_progress_ends_at_one_and_a_wrong_grid_is_refused(tmp_path) -> None:
    told: list[float] = []
    with MapReader(publish(tmp_path, blobs(200, 130))) as maps:
        survey(maps, TileGrid(height=200, width=130, tile_px=64, halo_px=8), progress=told.append)
        assert told == sorted(told)
        assert told[-1] == 1
        with pytest.raises(ValueError, match="the maps 200 x 130"):
            survey(maps, TileGrid(height=200, width=131, tile_px=64, halo_px=8))


def test_maps_tell_their_classes_and_are_read_small(tmp_path) -> None:
    classes = blobs(400, 700)
    with MapReader(publish(tmp_path, classes)) as maps:
        assert maps.classes == CLASSES
        whole = Window(row=0, col=0, height=400, width=700)
        np.testing.assert_array_equal(maps.read(whole)["classes"], classes)
        small = maps.small("classes", whole, 40, 70)
        assert small.shape == (40, 70)
        assert (small == classes[5::10, 5::10]).mean() > 0.6, "the same scene"


def test_maps_that_are_missing_damaged_or_of_two_runs_say_so(tmp_path) -> None:
    with pytest.raises(RasterOpenError, match="pass the folder"):
        MapReader(tmp_path)
    publish(tmp_path / "a", blobs(300, 300))
    publish(tmp_path / "b", blobs(300, 200))
    (tmp_path / "b" / "confidence.tif").replace(tmp_path / "a" / "confidence.tif")
    with pytest.raises(RasterOpenError, match="one size"):
        MapReader(tmp_path / "a")
    broken = publish(tmp_path / "c", np.random.default_rng(0).integers(0, 2, (900, 900)).astype(np.uint8))
    content = (broken / "classes.tif").read_bytes()
    (broken / "classes.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(RasterOpenError), MapReader(broken) as maps:
        maps.read(Window(row=0, col=0, height=900, width=900))
