"""Reading labelled scenes: two layouts, one meaning, and no scene with two roles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calib.scenes import Role, SceneFolder, assign_roles, find_scenes, tiles_of
from engine.contract.errors import GridError, RasterFormatError, RasterOpenError, UsageError
from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Scenario
from tests.calib.conftest import CLASSES, TILE_PX, labelled, rasters, write_npy, write_tif


def with_holes(seed: int, size_px: int = 2 * TILE_PX) -> dict[str, np.ndarray]:
    scene = rasters(seed, size_px=size_px)
    scene["ndsm"][0, 3:20, 5:40] = np.nan
    scene["labels"] = np.random.default_rng(seed).integers(0, len(CLASSES), (size_px, size_px), np.uint8)
    scene["labels"][:4] = 255
    return scene


def test_both_layouts_give_the_same_tiles_with_holes_filled_as_the_runtime_does(tmp_path: Path) -> None:
    scene = with_holes(1)
    arrays = SceneFolder.open(write_npy(tmp_path / "a", scene)).tiles(TILE_PX)
    images = SceneFolder.open(write_tif(tmp_path / "b", scene)).tiles(TILE_PX)
    assert [(tile.top, tile.left) for tile in arrays] == [(0, 0), (0, 32), (32, 0), (32, 32)]
    assert [tile.sha256 for tile in arrays] == [tile.sha256 for tile in images]
    for tile in arrays:
        part = np.s_[:, tile.top : tile.top + TILE_PX, tile.left : tile.left + TILE_PX]
        sample, height = tile.read(), scene["ndsm"][part]
        np.testing.assert_array_equal(sample.rgir, scene["rgir"][part])
        np.testing.assert_array_equal(sample.labels, scene["labels"][part[1:]])
        np.testing.assert_array_equal(sample.ndsm, fill_nodata(height.copy(), np.isfinite(height[0])))


def test_a_graph_gets_the_sensors_of_its_scenario_as_a_batch_of_one(tmp_path: Path) -> None:
    (tile,) = SceneFolder.open(write_npy(tmp_path / "a", labelled(1))).tiles(TILE_PX)
    shapes = {scenario: {n: v.shape for n, v in tile.read().inputs(scenario).items()} for scenario in Scenario}
    rgir, ndsm = {"rgir": (1, 3, 32, 32)}, {"ndsm": (1, 1, 32, 32)}
    assert shapes == {Scenario.FULL: rgir | ndsm, Scenario.MISSING_NDSM: rgir, Scenario.MISSING_RGIR: ndsm}


def scenes(root: Path, names: list[str]) -> list[SceneFolder]:
    scene = labelled(1)
    return [SceneFolder.open(write_npy(root / name, scene)) for name in names]


def test_scenes_named_by_seed_keep_to_the_ranges_they_were_trained_by(tmp_path: Path) -> None:
    names = [f"scene_{seed:08d}" for seed in (0, 7, 1_000_000, 1_000_003, 2_000_001)]
    dealt = assign_roles(scenes(tmp_path, names))
    assert {role: [scene.folder.name for scene in mine] for role, mine in dealt.items()} == {
        Role.CALIBRATE: names[:2],
        Role.SEARCH: names[2:4],
        Role.EVALUATE: names[4:],
    }


def test_other_scenes_are_dealt_by_name_so_that_adding_one_moves_no_other(tmp_path: Path) -> None:
    everything = scenes(tmp_path, [f"town {letter}" for letter in "abcdefghijklmnopqrst"])
    before, after = assign_roles(everything[:-1]), assign_roles(everything)
    for role in Role:
        assert before[role]
        assert set(before[role]) <= set(after[role])
    assert sum(len(mine) for mine in after.values()) == len(everything)


def test_training_scenes_alone_are_dealt_by_name_as_well(tmp_path: Path) -> None:
    dealt = assign_roles(scenes(tmp_path, [f"scene_{seed:08d}" for seed in range(12)]))
    assert all(dealt.values())


def test_a_role_without_a_scene_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none fell to calibrate"):
        assign_roles(scenes(tmp_path, [f"scene_{seed:08d}" for seed in (1_000_000, 1_000_001)])[:1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("ndsm"), RasterOpenError, "ndsm"),
        (lambda s: s.update(rgir=s["rgir"][:2]), RasterFormatError, "3 band"),
        (lambda s: s.update(rgir=s["rgir"].astype(np.int16)), RasterFormatError, "uint8"),
        (lambda s: s.update(labels=s["labels"][:, 1:]), GridError, "share one grid"),
    ],
    ids=["missing", "bands", "dtype", "size"],
)
def test_a_scene_that_cannot_be_used_is_refused_when_it_is_found(
    tmp_path: Path, change, error: type[Exception], message: str
) -> None:
    scene = labelled(1)
    change(scene)
    write_npy(tmp_path / "a", scene)
    with pytest.raises(error, match=message):
        find_scenes(tmp_path)


def test_a_damaged_image_is_an_open_error(tmp_path: Path) -> None:
    folder = write_tif(tmp_path / "a", labelled(1))
    (folder / "ndsm.tif").write_bytes(b"II*\0 not a raster")
    with pytest.raises(RasterOpenError, match="ndsm.tif cannot be read"):
        find_scenes(tmp_path)


def test_a_folder_without_scenes_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(RasterOpenError, match="python -m train.data.synthetic"):
        find_scenes(tmp_path)


def test_scenes_smaller_than_a_tile_are_refused(tmp_path: Path) -> None:
    scene = SceneFolder.open(write_npy(tmp_path / "a", labelled(1)))
    with pytest.raises(RasterFormatError, match="at least a tile of 64 px.* 32 x 32"):
        tiles_of([scene], 64)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    scene = labelled(1)
    scene["labels"][0, 0] = 9
    (tile,) = SceneFolder.open(write_npy(tmp_path / "a", scene)).tiles(TILE_PX)
    with pytest.raises(RasterFormatError, match="4 classes.*received 9 in a@0,0"):
        tile.read().known(len(CLASSES))
