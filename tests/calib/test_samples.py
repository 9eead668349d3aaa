"""The calibration list covers what the data holds, and depends on nothing but content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calib.samples import choose, digest_of, strata_of
from calib.scenes import SceneFolder, SceneTile
from tests.calib.conftest import CLASSES, TILE_PX, rasters, write_npy, write_tif


def scene(seed: int, *, classes: tuple[int, ...] = (0,), height_m: float = 1.0, level: int = 100) -> dict:
    """Uniform but for its seed."""
    made = rasters(seed)
    made["rgir"] = np.full_like(made["rgir"], level)
    made["rgir"][0, 0, 0] = seed % 256
    made["ndsm"] = np.full_like(made["ndsm"], height_m)
    made["labels"] = np.resize(np.array(classes, np.uint8), (TILE_PX, TILE_PX))
    return made


def tile(folder: Path, made: dict, write=write_npy) -> SceneTile:
    return SceneFolder.open(write(folder, made)).tiles(TILE_PX)[0]


def test_strata_name_classes_height_and_brightness(tmp_path: Path) -> None:
    sample = tile(tmp_path / "a", scene(1, classes=(0, 2), height_m=8.0, level=200)).read()
    assert strata_of(sample, CLASSES) == ("class ground", "class grass", "height 6..12 m", "brightness 180.. DN")


def test_a_class_below_half_a_percent_does_not_count(tmp_path: Path) -> None:
    made = scene(1)
    made["labels"][0, :5] = 1  # of 1024 pixels
    assert "class roof" not in strata_of(tile(tmp_path / "a", made).read(), CLASSES)
    made["labels"][0, :6] = 1
    assert "class roof" in strata_of(tile(tmp_path / "b", made).read(), CLASSES)


def test_rare_classes_heights_and_light_are_chosen_first(tmp_path: Path) -> None:
    common = [tile(tmp_path / f"common{i}", scene(i)) for i in range(30)]
    rare = [
        tile(tmp_path / "class", scene(50, classes=(0, 1))),
        tile(tmp_path / "tower", scene(51, height_m=30.0)),
        tile(tmp_path / "dark", scene(52, level=20)),
    ]
    chosen = choose([*common, *rare], 4, CLASSES)
    assert {one.scene.folder.name for one in chosen.tiles} >= {"class", "tower", "dark"}
    assert all(chosen.covered.values())
    assert chosen.available["class roof"] == 1


def test_the_list_is_the_same_whatever_order_and_format_the_tiles_came_in(tmp_path: Path) -> None:
    made = {f"s{i}": scene(i, classes=(i % 3,), height_m=float(i), level=20 * i) for i in range(12)}
    arrays = [tile(tmp_path / "npy" / name, one) for name, one in made.items()]
    images = [tile(tmp_path / "tif" / name, one, write_tif) for name, one in reversed(made.items())]
    first, second = choose(arrays, 5, CLASSES), choose(images, 5, CLASSES)
    assert [one.name for one in first.tiles] == [one.name for one in second.tiles]
    assert first.sha256 == second.sha256


def test_the_digest_changes_with_a_single_pixel(tmp_path: Path) -> None:
    made = scene(1)
    before = digest_of([tile(tmp_path / "a", made)])
    made["ndsm"][0, 5, 5] += 1
    assert digest_of([tile(tmp_path / "b", made)]) != before


def test_fewer_candidates_than_asked_for_are_all_taken(tmp_path: Path) -> None:
    assert len(choose([tile(tmp_path / f"{i}", scene(i)) for i in range(3)], 9, CLASSES).tiles) == 3
