import shutil

import numpy as np
import pytest
from scipy import ndimage

from engine.contract.sensors import Sensor
from tests.train import isprs_mini as mini
from train.data import check
from train.data.isprs import CITIES, POTSDAM, VAIHINGEN, IsprsSource, erode, find_tiles
from train.data.labels import IGNORE_INDEX, ISPRS_LABELS, decode_colours
from train.data.rasters import DataError


def source(tmp_path, city, tiles=None) -> IsprsSource:
    return IsprsSource(root=mini.make(city, tmp_path / city.name, tiles), city=city, cache=tmp_path / "cache")


@pytest.fixture(scope="module")
def potsdam(tmp_path_factory) -> IsprsSource:
    return source(tmp_path_factory.mktemp("potsdam"), POTSDAM)


@pytest.mark.parametrize(("city", "train", "test"), [(VAIHINGEN, 16, 17), (POTSDAM, 24, 14)])
def test_parts_are_the_official_ones_and_validation_comes_out_of_training(city, train, test):
    parts = city.splits
    assert len(parts["train"]) + len(parts["validation"]) == train
    assert len(parts["test"]) == test
    assert len({*parts["train"], *parts["validation"], *parts["test"]}) == train + test


@pytest.mark.parametrize("city", CITIES.values(), ids=CITIES)
def test_a_tile_reads_back_as_image_metres_and_classes(tmp_path, city):
    tile = city.splits["validation"][0]
    here = source(tmp_path, city, city.splits["validation"])
    scene = here.split("validation")[0]
    truth = mini.truth_of(tile)
    np.testing.assert_array_equal(scene.labels(), truth)
    np.testing.assert_array_equal(scene.bands(Sensor.RGIR), mini.image(truth))
    metres = mini.height_of(truth) * 0.1
    # JPEG at quality 100 is off by a few grey levels at edges; half a metre is five of them
    np.testing.assert_allclose(scene.bands(Sensor.NDSM)[0], metres, atol=0.5)
    assert scene.bands(Sensor.NDSM).max() == pytest.approx(25.5, abs=0.3)


def test_heights_are_on_one_scale_in_every_tile(tmp_path):
    low = np.zeros((64, 64), np.uint8)
    low[:32] = 4  # cars, 1.5 m at most
    here = source(tmp_path, VAIHINGEN, ("1",))
    file = next(here.root.glob("ndsm/*area1_*"))
    mini.write(file, mini.height_of(low)[None], driver="JPEG", quality=100)
    files = find_tiles(here.root, VAIHINGEN)["1"]
    heights = here._scene(files).bands(Sensor.NDSM)
    assert float(np.nanmax(heights)) == pytest.approx(1.5, abs=0.3)


def test_the_lossy_label_and_the_wrong_yellow_are_repaired(potsdam):
    scenes = {scene.name: scene for scene in potsdam.split("train")}
    for tile in (mini.LOSSY, mini.YELLOW):
        np.testing.assert_array_equal(scenes[tile].labels(), mini.truth_of(tile))


def test_the_missing_column_of_a_height_counts_as_not_measured(potsdam):
    scene = next(scene for scene in potsdam.split("test") if scene.name == mini.SHORT)
    unknown = np.isnan(scene.bands(Sensor.NDSM)[0])
    assert unknown[:, -1].all()
    assert not unknown[:, :-1].any()


def test_labels_without_boundaries_are_read_or_computed(tmp_path, potsdam):
    given = source(tmp_path, VAIHINGEN, VAIHINGEN.splits["validation"]).split("validation")[0]
    assert (given.labels(eroded=True)[20:23] == IGNORE_INDEX).all()
    computed = potsdam.split("validation")[0]
    truth, eroded = computed.labels(), computed.labels(eroded=True)
    kept = eroded != IGNORE_INDEX
    np.testing.assert_array_equal(eroded[kept], truth[kept])
    assert 0.1 < kept.mean() < 0.9


def test_erosion_removes_all_within_three_pixels_of_another_class():
    labels = mini.truth_of("11")
    # distance to the nearest pixel of another class, by brute force over classes
    distance = np.zeros(labels.shape)
    for index in np.unique(labels):
        distance[labels == index] = ndimage.distance_transform_edt(labels == index)[labels == index]
    np.testing.assert_array_equal(erode(labels) == IGNORE_INDEX, distance <= 3)


def test_preparing_twice_reads_nothing_again_and_a_changed_file_is_noticed(tmp_path):
    here = source(tmp_path, VAIHINGEN, VAIHINGEN.splits["validation"])
    folder = here.split("validation")[0].folder
    made = (folder / "labels.npy").stat().st_mtime_ns
    assert (here.split("validation")[0].folder / "labels.npy").stat().st_mtime_ns == made
    tile = VAIHINGEN.splits["validation"][0]
    label = here.root / "gts_for_participants" / f"top_mosaic_09cm_area{tile}.tif"
    mini.write(label, mini.colours(np.zeros((64, 64), np.uint8)))
    assert not here.split("validation")[0].labels().any()


def test_four_band_images_are_used_when_there_are_no_others(tmp_path):
    here = source(tmp_path, POTSDAM, ("3_11",))
    irrg = here.root / "3_Ortho_IRRG" / "top_potsdam_3_11_IRRG.tif"
    nir, red, green = mini.image(mini.truth_of("3_11"))
    irrg.unlink()
    blue = np.zeros_like(red)
    mini.write(here.root / "4_Ortho_RGBIR" / "top_potsdam_3_11_RGBIR.tif", np.stack([red, green, blue, nir]))
    scene = here._scene(find_tiles(here.root, POTSDAM)["3_11"])
    np.testing.assert_array_equal(scene.bands(Sensor.RGIR), [nir, red, green])


def test_a_missing_file_names_tile_sensor_and_the_command_that_lists_all(tmp_path):
    here = source(tmp_path, VAIHINGEN, ("11",))
    with pytest.raises(DataError, match=r"tile 28 lacks rgir, ndsm, labels.*train\.data\.check"):
        here.split("validation")


@pytest.mark.parametrize(
    ("shape", "message"), [((64, 60), "copy it again"), ((66, 64), "at most 1 px may differ"), ((64, 63), None)]
)
def test_heights_of_another_size_are_refused_beyond_one_pixel(tmp_path, shape, message):
    here = source(tmp_path, VAIHINGEN, ("11",))
    mini.write(next(here.root.glob("ndsm/*")), np.zeros((1, *shape), np.uint8), driver="JPEG")
    files = find_tiles(here.root, VAIHINGEN)["11"]
    if message is None:
        here._scene(files)
    else:
        with pytest.raises(DataError, match=message):
            here._scene(files)


def test_a_colour_that_is_no_class_is_unknown_and_many_of_them_an_error(tmp_path):
    here = source(tmp_path, VAIHINGEN, ("11",))
    rgb = mini.colours(mini.truth_of("11"))
    rgb[:, 0, 0] = 255, 0, 255
    label = here.root / "gts_for_participants" / "top_mosaic_09cm_area11.tif"
    mini.write(label, rgb)
    files = find_tiles(here.root, VAIHINGEN)["11"]
    assert here._scene(files).labels()[0, 0] == IGNORE_INDEX
    rgb[:, 0] = np.array([255, 0, 255])[:, None]
    mini.write(label, rgb)
    with pytest.raises(DataError, match=r"64 pixels have a colour that is no class, such as \(255, 0, 255\)"):
        here._scene(find_tiles(here.root, VAIHINGEN)["11"])


def test_archives_that_are_still_packed_are_named(tmp_path):
    (tmp_path / "ISPRS_semantic_labeling_Vaihingen.zip").touch()
    with pytest.raises(DataError, match="unpack ISPRS_semantic_labeling_Vaihingen.zip"):
        find_tiles(tmp_path, VAIHINGEN)


def test_exact_colours_are_told_from_rounded_ones():
    rgb = np.array([[[255, 252, 90]], [[255, 255, 0]], [[255, 0, 90]]], np.uint8)
    exact, rounded = decode_colours(rgb, ISPRS_LABELS), decode_colours(rgb, ISPRS_LABELS, threshold=True)
    assert exact.labels.tolist() == [[0, IGNORE_INDEX, IGNORE_INDEX]]
    assert (exact.unmatched, exact.example_rgb) == (2, (252, 255, 0))
    assert rounded.labels.tolist() == [[0, 4, IGNORE_INDEX]]
    assert (rounded.unmatched, rounded.inexact) == (0, 2)


def test_the_check_of_a_whole_download_says_what_was_repaired(potsdam, capsys):
    assert check.main([str(potsdam.root)]) == 0
    out = capsys.readouterr().out
    assert f"{mini.LOSSY} (train): 1e+02 % of the label colours are inexact" in out
    assert f"{mini.YELLOW} (train): 0.37 % of the label colours are inexact" in out
    assert f"{mini.SHORT} (test): 1.6 % of the heights are unknown" in out
    assert "potsdam in" in out
    assert "usable" in out


def test_the_check_names_every_missing_file_and_fails(tmp_path, capsys):
    root = mini.vaihingen(tmp_path / "v")
    (root / "gts_for_participants" / "top_mosaic_09cm_area7.tif").unlink()
    shutil.rmtree(root / "gts_eroded_for_participants")
    assert check.main([str(root)]) == 1
    out = capsys.readouterr().out
    assert "error   7 (train): has no labels file" in out
    assert "note    11 (validation): has no _noBoundary labels" in out
    assert "1 must be repaired" in out


def test_the_check_of_something_else_says_so(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 2
    assert "is no data set" in capsys.readouterr().err


@pytest.mark.parametrize("shift", [(0, 0), (9, -6), (-12, 5)])
def test_heights_that_were_moved_against_the_labels_are_found(shift):
    rng = np.random.default_rng(0)
    building = np.zeros((256, 256), bool)
    for top, left in rng.integers(20, 200, (12, 2)):
        building[top : top + rng.integers(10, 36), left : left + rng.integers(10, 36)] = True
    height = np.where(building, 7, 0) + rng.normal(0, 0.3, building.shape)
    moved = np.roll(height, (-shift[0], -shift[1]), axis=(0, 1)).astype(np.float32)
    found = check.misalignment(moved, building)
    assert found == (None if shift == (0, 0) else shift)
