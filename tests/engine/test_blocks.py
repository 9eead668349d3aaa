"""Windows that come in order hold what the same windows hold by themselves, and each block is decoded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from engine.contract.errors import RasterOpenError
from engine.contract.sensors import Sensor
from engine.grid import TileGrid, Window
from engine.rasters import blocks
from engine.rasters.height_models import HeightModels
from engine.rasters.raster import SensorRasters
from engine.rasters.sources import FileSource, Observation, blank_observation
from tests.engine.test_raster import SPECS

HEIGHT, WIDTH, SIDE = 700, 620, 128
STORED = {
    "tiles": {"tiled": True, "blockxsize": 256, "blockysize": 256},
    "small tiles": {"tiled": True, "blockxsize": 48, "blockysize": 16},
    "strips": {"blockysize": 3},
    "one strip": {"blockysize": HEIGHT},
}


def write(path: Path, pixels: np.ndarray, *, nodata: float | None = None, gsd: float = 1.0, **stored: object) -> Path:
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    place = {"crs": "EPSG:32632", "transform": Affine(gsd, 0, 5e5, 0, -gsd, 54e5)}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, nodata=nodata, compress="deflate", **shape, **place, **stored
    ) as file:
        file.write(pixels)
    return path


def scene(folder: Path, stored: dict[str, object], gsd: float = 1.0) -> dict[Sensor, Path]:
    """A pair with gaps of every kind: a wedge at the border, single pixels, infinity."""
    rng = np.random.default_rng(3)
    rgir = rng.integers(1, 256, (3, HEIGHT, WIDTH), np.uint8)
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    rgir[:, rows < 90 - cols // 4] = 0
    rgir[:, 300:303, 200] = 0
    ndsm = rng.normal(4, 3, (1, round(HEIGHT / gsd), round(WIDTH / gsd))).astype(np.float32)
    ndsm[:, -40:, -200:] = -9999
    ndsm[0, 10, 500 % ndsm.shape[2]] = np.inf
    return {
        Sensor.RGIR: write(folder / "rgir.tif", rgir, nodata=0, **stored),
        Sensor.NDSM: write(folder / "ndsm.tif", ndsm, nodata=-9999, gsd=gsd, **stored),
    }


def windows(first: int = 0) -> list[Window]:
    grid = TileGrid(height=HEIGHT, width=WIDTH, tile_px=SIDE, halo_px=16, strip_tiles=3)
    return [tile.reads for tile in grid.tiles(first)]


def read_all(rasters: SensorRasters, asked: list[Window]) -> list[dict[Sensor, tuple[np.ndarray, np.ndarray]]]:
    found = []
    for window in asked:
        out = {sensor: source.blank(SIDE, SIDE) for sensor, source in rasters._sources.items()}
        seen, errors = rasters.read_into(window, out)
        assert not errors
        for each in seen.values():
            assert not each.whole or each.valid.all()
        found.append({sensor: (each.values, each.valid) for sensor, each in seen.items()})
    return found


def assert_same(one: list[dict], other: list[dict]) -> None:
    for first, second in zip(one, other, strict=True):
        for sensor, arrays in first.items():
            for mine, its in zip(arrays, second[sensor], strict=True):
                np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_windows_in_order_hold_what_single_ones_do_and_each_block_is_decoded_once(
    tmp_path, monkeypatch, stored, readers
) -> None:
    asked = windows(5)
    with SensorRasters.open(scene(tmp_path, stored), SPECS) as rasters:
        alone = read_all(rasters, asked)
        decoded: Counter[tuple[object, ...]] = Counter()
        read = FileSource.read

        def counted(self: FileSource, row: int, col: int, out: Observation) -> bool:
            decoded[self.spec.sensor, row, col] += 1
            return read(self, row, col, out)

        monkeypatch.setattr(FileSource, "read", counted)
        with rasters.in_order(lambda: iter(asked), readers=readers) as ordered:
            assert_same(read_all(ordered, asked), alone)
            assert not any(each._held for each in ordered._blocks), "what nobody needs any more is kept"
    assert {sensor for sensor, _, _ in decoded} == set(Sensor)
    assert set(decoded.values()) == {1}


def test_a_warped_raster_is_the_same_by_blocks_but_for_rounding(tmp_path) -> None:
    asked = windows()
    with SensorRasters.open(scene(tmp_path, STORED["tiles"], gsd=1.25), SPECS) as rasters:
        alone = read_all(rasters, asked)
        with rasters.in_order(lambda: iter(asked), readers=2) as ordered:
            for mine, its in zip(read_all(ordered, asked), alone, strict=True):
                np.testing.assert_array_equal(mine[Sensor.NDSM][1], its[Sensor.NDSM][1])
                np.testing.assert_allclose(mine[Sensor.NDSM][0], its[Sensor.NDSM][0], atol=0.02)


def test_a_difference_is_cut_into_blocks_too(tmp_path) -> None:
    ndsm = scene(tmp_path, STORED["tiles"])[Sensor.NDSM]
    ground = write(tmp_path / "dtm.tif", np.full((1, HEIGHT, WIDTH), 1.5, np.float32))
    for path in (ndsm, ground):
        with rasterio.open(path, "r+") as file:
            file.units = ("m",)
    asked = windows()
    with SensorRasters.open({Sensor.NDSM: HeightModels(dsm=ndsm, dtm=ground)}, SPECS) as rasters:
        alone = read_all(rasters, asked)
        with rasters.in_order(lambda: iter(asked), readers=2) as ordered:
            assert len(ordered._blocks) == 1
            assert_same(read_all(ordered, asked), alone)


def test_blocks_beyond_the_memory_are_decoded_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "HELD_BYTES", 0)
    monkeypatch.setattr(blocks, "LEAST_HELD", 2)
    asked = windows()
    with SensorRasters.open(scene(tmp_path, STORED["small tiles"]), SPECS) as rasters:
        alone = read_all(rasters, asked)
        with rasters.in_order(lambda: iter(asked)) as ordered:
            assert_same(read_all(ordered, asked), alone)
            assert all(len(each._held) <= 2 for each in ordered._blocks)


@pytest.mark.parametrize("readers", [1, 2])
def test_a_damaged_block_fails_the_windows_that_reach_into_it_and_no_other(tmp_path, readers) -> None:
    path = scene(tmp_path, STORED["tiles"])[Sensor.RGIR]
    with rasterio.open(path) as file:
        place = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    with path.open("r+b") as stream:
        stream.seek(place + 10)
        stream.write(bytes(400))
    asked = windows()

    def outcome(rasters: SensorRasters) -> list[str]:
        told = []
        for window in asked:
            errors = rasters.read_into(window, {Sensor.RGIR: blank_observation(SPECS[Sensor.RGIR], SIDE, SIDE)})[1]
            assert all(isinstance(error, RasterOpenError) for error in errors.values())
            told.append(str(errors.get(Sensor.RGIR, "")).partition(":")[0])
        return told

    with SensorRasters.open({Sensor.RGIR: path}, SPECS) as rasters:
        alone = outcome(rasters)
        with rasters.in_order(lambda: iter(asked), readers=readers) as ordered:
            assert outcome(ordered) == alone
    assert 0 < sum(map(bool, alone)) < len(asked)
