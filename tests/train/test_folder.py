from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from engine.contract.sensors import Sensor
from train.data import check
from train.data.folder import FolderSource
from train.data.labels import IGNORE_INDEX
from train.data.rasters import DataError

SIDE = 48


def write(path: Path, bands: np.ndarray, *, gsd_m: float = 0.2, crs: str | None = "EPSG:25832", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", dtype=bands.dtype, count=count, height=height, width=width, crs=crs,
        transform=from_origin(500_000, 5_400_000, gsd_m, gsd_m), **options,
    ) as file:  # fmt: skip
        file.write(bands)


def scene(root: Path, name: str, *, seed: int = 0, without: str = "") -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 6, (3, 3)), np.ones((16, 16), int)).astype(np.uint8)
    bands = {
        "rgir": rng.integers(1, 256, (3, SIDE, SIDE)).astype(np.uint8),
        "ndsm": labels[None] * np.float32(3),
        "labels": labels[None],
    }
    for file, values in bands.items():
        if file != without:
            write(root / name / f"{file}.tif", values)
    return labels


def source(tmp_path: Path, text: str | None = None) -> FolderSource:
    if text is not None:
        (tmp_path / "data" / "dataset.toml").write_text(text)
    return FolderSource(root=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def data(tmp_path) -> Path:
    for i, name in enumerate("abcdef"):
        scene(tmp_path / "data", name, seed=i)
    return tmp_path / "data"


def test_every_fifth_scene_validates_unless_the_description_says_otherwise(tmp_path, data):
    names = {part: [scene.name for scene in source(tmp_path).split(part)] for part in ("train", "validation", "test")}
    assert names == {"train": ["b", "c", "d", "e"], "validation": ["a", "f"], "test": []}
    told = source(tmp_path, '[split]\nvalidation = ["c"]\ntest = ["a", "b"]\n')
    assert [scene.name for scene in told.split("train")] == ["d", "e", "f"]
    assert told.gsd_m == pytest.approx((0.2, 0.2))


def test_a_place_that_is_left_out_neither_trains_nor_validates(tmp_path, data):
    for name in ("north_1", "north_2"):
        scene(data, name)
    (data / "dataset.toml").write_text('[split]\nvalidation = ["c", "north_1"]\ntest = ["a"]\n')

    def parts(*left_out: str) -> list[list[str]]:
        found = FolderSource(root=data, cache=tmp_path / "cache", left_out=left_out)
        return [[scene.name for scene in found.split(part)] for part in ("train", "validation", "test")]

    assert parts("north") == [["b", "d", "e", "f"], ["c"], ["a"]]
    assert parts("north", "a", "b") == [["d", "e", "f"], ["c"], ["a"]]
    with pytest.raises(DataError, match="no scene in .* begins with south"):
        parts("north", "south")
    with pytest.raises(DataError, match="leave scenes to train on and to validate with"):
        parts("north", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[split]\nvalidation = ["moon"]', "no folder moon"),
        ('[split]\nvalidation = ["a"]\ntest = ["a"]', "a in both parts"),
        ('[split]\nvalidation = ["a", "b", "c", "d", "e", "f"]', "leave scenes to train on"),
        ("[split", "dataset.toml"),
        ("rgir_band = [1, 2, 3]", "unknown field"),
        ('[[class]]\nname = "a"\nrgb = [1, 2, 3]\n[[class]]\nname = "a"\nrgb = [1, 2, 4]', "class names must differ"),
    ],
)
def test_a_description_that_contradicts_itself_or_the_folder_is_refused(tmp_path, data, text, message):
    with pytest.raises(DataError, match=message):
        _ = source(tmp_path, text).labels


def test_a_scene_is_prepared_once_and_again_when_its_description_changes(tmp_path, data):
    def made() -> list[int]:
        source = FolderSource(root=data, cache=tmp_path / "cache")
        return [(found.folder / "source.json").stat().st_mtime_ns for found in source.split("train")]

    first = made()
    assert made() == first
    (data / "dataset.toml").write_text("ndsm_scale_m = 0.5\n")
    assert not set(made()) & set(first)


def test_another_grid_is_brought_onto_the_image(tmp_path):
    root = tmp_path / "data"
    labels = scene(root, "a")
    scene(root, "b")
    coarse = (labels[::4, ::4] * np.float32(3))[None]
    write(root / "a" / "ndsm.tif", coarse, gsd_m=0.8)
    heights = source(tmp_path).split("validation")[0].bands(Sensor.NDSM)[0]
    assert heights.shape == (SIDE, SIDE)
    inner = np.zeros_like(labels, bool)
    for row in range(0, SIDE, 16):
        for col in range(0, SIDE, 16):
            inner[row + 5 : row + 11, col + 5 : col + 11] = True  # bilinear mixes neighbours near block borders
    np.testing.assert_allclose(heights[inner], (labels * 3)[inner], atol=0.01)


def test_nodata_of_every_raster_is_honoured(tmp_path):
    root = tmp_path / "data"
    labels = scene(root, "a")
    scene(root, "b")
    rgir = np.full((3, SIDE, SIDE), 50, np.uint8)
    rgir[:, :8] = 0
    ndsm = np.full((1, SIDE, SIDE), 2, np.float32)
    ndsm[0, :, :8] = -9999
    truth = labels[None].copy()
    truth[0, 40:] = 9
    write(root / "a" / "rgir.tif", rgir, nodata=0)
    write(root / "a" / "ndsm.tif", ndsm, nodata=-9999)
    write(root / "a" / "labels.tif", truth, nodata=9)
    found = source(tmp_path).split("validation")[0].read(0, 0, SIDE, SIDE)
    assert not found.rgir_valid[:8].any()
    assert found.rgir_valid[8:].all()
    assert not found.ndsm_valid[:, :8].any()
    assert (found.ndsm == 2).all()
    assert (found.labels[40:] == IGNORE_INDEX).all()


def test_scenes_are_used_for_what_they_have(tmp_path):
    root = tmp_path / "data"
    scene(root, "a")
    for name, without in (("b", "rgir"), ("c", "ndsm"), ("d", "labels")):
        scene(root, name, without=without)
    b, c, d = source(tmp_path).split("train")
    assert (b.sensors, b.labelled) == ({Sensor.NDSM}, True)
    assert (c.sensors, c.labelled) == ({Sensor.RGIR}, True)
    assert (d.sensors, d.labelled) == (set(Sensor), False)


def test_own_classes_by_colour(tmp_path):
    root = tmp_path / "data"
    scene(root, "a")
    scene(root, "b")
    rgb = np.zeros((3, SIDE, SIDE), np.uint8)
    rgb[:, :20], rgb[:, 20:40] = np.array([10, 20, 30])[:, None, None], np.array([1, 2, 3])[:, None, None]
    for name in "ab":
        write(root / name / "labels.tif", rgb)
    text = '[[class]]\nname = "water"\nrgb = [10, 20, 30]\n[[class]]\nname = "rest"\nrgb = [1, 2, 3]\ncounted = false\n'
    here = source(tmp_path, text)
    assert (here.labels.names, here.labels.counted) == (("water", "rest"), (0,))
    labels = here.split("validation")[0].labels()
    assert np.unique(labels[:20]).tolist() == [0]
    assert np.unique(labels[20:40]).tolist() == [1]
    assert np.unique(labels[40:]).tolist() == [IGNORE_INDEX]


@pytest.mark.parametrize(
    ("file", "bands", "message"),
    [
        ("rgir", np.zeros((3, SIDE, SIDE), np.uint16), "must be 8-bit"),
        ("rgir", np.zeros((1, SIDE, SIDE), np.uint8), "needs band 3"),
        ("ndsm", np.full((1, SIDE, SIDE), np.nan, np.float32), "no height at all"),
        ("labels", np.full((1, SIDE, SIDE), 7, np.uint8), r"0\.\.5 or be 255, received \[7\]"),
        ("labels", np.full((3, SIDE, SIDE), 7, np.uint8), r"such as \(7, 7, 7\)"),
    ],
)
def test_rasters_that_do_not_fit_are_refused_by_name_and_by_the_check(tmp_path, data, capsys, file, bands, message):
    write(data / "a" / f"{file}.tif", bands)
    with pytest.raises(DataError, match=message):
        source(tmp_path).split("validation")
    assert check.main([str(data)]) == 1
    assert f"{file}.tif" in capsys.readouterr().out


def test_sizes_that_differ_without_georeference_are_refused(tmp_path, data):
    write(data / "a" / "ndsm.tif", np.zeros((1, 20, 20), np.float32), crs=None)
    with pytest.raises(DataError, match="one size or a coordinate system"):
        source(tmp_path).split("validation")


def test_a_truncated_raster_is_reported(tmp_path, data):
    path = data / "a" / "rgir.tif"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"rgir\.tif"):
        source(tmp_path).split("validation")


def test_an_empty_folder_and_a_single_scene_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="holds no scene"):
        source(tmp_path)
    scene(tmp_path / "data", "alone")
    with pytest.raises(DataError, match="validation another"):
        source(tmp_path)


def test_a_surface_model_in_place_of_heights_is_found_by_the_check(tmp_path, data, capsys):
    write(data / "b" / "ndsm.tif", np.full((1, SIDE, SIDE), 412, np.float32) + np.arange(SIDE, dtype=np.float32))
    assert check.main([str(data), "--kind", "folder"]) == 1
    assert "not above ground" in capsys.readouterr().out
