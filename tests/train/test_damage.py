"""Data sets, checkpoints and states of a training that are not what they say: one line each, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import safetensors.torch
import torch
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from tests.train.test_folder import SIDE, data, scene, source, write
from train import checkpoint, run
from train.checkpoint import CheckpointInfo
from train.config import PRESETS
from train.data import scenes
from train.data.rasters import DataError, Raster
from train.distributed import Group
from train.system import System
from train.systems import build

__all__ = ["data"]  # a fixture


@pytest.mark.parametrize(
    "text",
    [
        "[split]".encode("utf-16"),
        b"\xff",
        b"a = " + b"[" * 10_000,
        b"rgir_bands = [0, 1, 2]",
        b"ndsm_scale_m = nan",
        b"ndsm_scale_m = 0",
        b'[[class]]\nname = ""\nrgb = [0, 0, 1]',
        b"ndsm_scale_m = 1" + b"0" * 5000,
    ],
)
def test_a_description_that_is_none_is_one_line(tmp_path: Path, data: Path, text: bytes) -> None:
    (data / "dataset.toml").write_bytes(text)
    with pytest.raises(DataError, match=r"dataset\.toml") as caught:
        _ = source(tmp_path).labels
    assert str(caught.value).isprintable()


def test_heights_follow_the_scale_tag_of_their_file_as_in_flight(tmp_path: Path) -> None:
    labels = scene(tmp_path / "data", "a")
    write(tmp_path / "data" / "a" / "ndsm.tif", (10 * labels[None]).astype(np.int16))
    with rasterio.open(tmp_path / "data" / "a" / "ndsm.tif", "r+") as file:
        file.scales, file.offsets = (0.1,), (2.0,)
    scene(tmp_path / "data", "b")
    found = source(tmp_path).read_scene("a")["ndsm"]
    np.testing.assert_allclose(found[0], labels + 2.0, atol=0.01)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_a_scale_tag_that_leaves_no_height_is_refused(tmp_path: Path, scale: float) -> None:
    scene(tmp_path / "data", "a")
    scene(tmp_path / "data", "b")
    with rasterio.open(tmp_path / "data" / "a" / "ndsm.tif", "r+") as file:
        file.scales = (scale,)
    with pytest.raises(DataError, match="scale"):
        source(tmp_path).read_scene("a")


def test_rasters_placed_by_points_are_not_laid_pixel_on_pixel(tmp_path: Path) -> None:
    scene(tmp_path / "data", "a")
    scene(tmp_path / "data", "b")
    path = tmp_path / "data" / "a" / "ndsm.tif"
    corners = ((0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE))
    points = [GroundControlPoint(row, col, 500_000 + col, 5_400_000 - row) for row, col in corners]
    with rasterio.open(
        path, "w", driver="GTiff", dtype="float32", count=1, height=SIDE, width=SIDE, gcps=points, crs="EPSG:25832"
    ) as file:
        file.write(np.ones((1, SIDE, SIDE), np.float32))
    with pytest.raises(DataError, match="gdalwarp"):
        source(tmp_path).read_scene("a")


@pytest.mark.parametrize("marked", [4, 5])
def test_an_alpha_band_masks_and_a_band_that_is_read_does_not(tmp_path: Path, marked: int) -> None:
    values = np.full((5, SIDE, SIDE), 9, np.uint8)
    values[marked - 1, :10] = 0
    names = [ColorInterp.undefined] * 5
    names[marked - 1] = ColorInterp.alpha
    write(tmp_path / "rgir.tif", values[:4] if marked == 4 else values)
    with rasterio.open(tmp_path / "rgir.tif", "r+") as file:
        file.colorinterp = names[: file.count]
    with Raster(tmp_path / "rgir.tif") as raster:
        np.testing.assert_array_equal(raster.read((1, 2, 3))[1], values[marked - 1] > 0)
        assert raster.read((marked, 1, 2))[1].all()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "no\nsuch"])
def test_a_name_that_leads_nowhere_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        Raster(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_folder_that_is_no_prepared_scene_is_never_removed(tmp_path: Path, data: Path) -> None:
    mine = tmp_path / "cache" / "folder" / "data" / "b"
    mine.mkdir(parents=True)
    (mine / "photo.jpg").write_text("mine")
    with pytest.raises(DataError, match="move it"):
        source(tmp_path).split("train")
    assert (mine / "photo.jpg").read_text() == "mine"


def test_a_prepared_scene_that_is_damaged_is_named(tmp_path: Path) -> None:
    made = scenes.write_scene(tmp_path / "s", {"rgir": np.zeros((3, 8, 8), np.uint8)}, {})
    (made.folder / "rgir.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"rgir\.npy is damaged"):
        made.bands(next(iter(made.sensors)))


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, System]:
    preset = PRESETS["nano"]
    model = build(preset.model)
    info = CheckpointInfo(
        model=preset.model, train=preset.train, sensors=preset.model.sensor_specs, statistics={}, dataset="", step=1,
        metrics={}, command="", tools={},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    checkpoint.save(path, model.state_dict(), info)
    return path, model


Tensors = dict[str, torch.Tensor]


def _pair(tensors: Tensors) -> tuple[str, str]:
    """Two tensors of one shape and different values."""
    seen: dict[tuple[int, ...], str] = {}
    for name, tensor in tensors.items():
        other = seen.setdefault(tuple(tensor.shape), name)
        if other != name and not torch.equal(tensors[other], tensor):
            return other, name
    raise AssertionError("no two tensors have one shape")


def _not_finite(tensors: Tensors) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim() > 1)
    tensors[name].view(-1)[3] = torch.nan


def _renamed(tensors: Tensors) -> None:
    tensors["another.name"] = tensors.pop(next(iter(tensors)))


def _swapped(tensors: Tensors) -> None:
    one, other = _pair(tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def _of_another_shape(tensors: Tensors) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].repeat(2, *[1] * (tensors[name].dim() - 1))


def _altered_by_a_thousandth(tensors: Tensors) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim() > 1)
    tensors[name] = tensors[name] * 1.001


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_not_finite, "not finite"),
        (_renamed, "not those of its model"),
        (_swapped, "not those that were saved"),
        (_of_another_shape, "not those of its model"),
        (_altered_by_a_thousandth, "not those that were saved"),
    ],
)
def test_tensors_that_are_not_those_that_were_saved_are_refused(
    saved: tuple[Path, System], tmp_path: Path, change: Callable[[Tensors], None], why: str
) -> None:
    path, _ = saved
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, tmp_path / "x", metadata=metadata
    )
    with pytest.raises(ValueError, match=why) as caught:
        checkpoint.load(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_digest_still_loads(saved: tuple[Path, System], tmp_path: Path) -> None:
    path, model = saved
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = {"info": file.metadata()["info"]}
    safetensors.torch.save_file(safetensors.torch.load_file(path), tmp_path / "old", metadata=metadata)
    loaded = checkpoint.load(tmp_path / "old")[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\x02garbage", b"x" * 1000, None])
def test_a_state_that_is_damaged_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "resume.pt"
    if content is None:
        torch.save({"model": torch.ones(100)}, path)
        content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as caught:
        checkpoint.load_state(path, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_a_batch_that_processes_cannot_share_is_told_before_anything_is_prepared(tmp_path: Path) -> None:
    words = ["--preset", "nano", "--synthetic", "2", "--batch", "3", "--cache", str(tmp_path / "c")]
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        run.prepare(run.parse([*words, "--out", str(tmp_path / "o")]), "", Group(rank=0, size=2))
    assert not (tmp_path / "c").exists()
