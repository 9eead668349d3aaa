"""What a switch of engine does to the map, on procedural ground with known truth and the shipped model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from engine import demo
from engine.backends.base import Output
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.sensors import Provenance, Scenario, Sensor
from engine.grid import Window
from engine.health.faults import parse_faults
from engine.rasters.raster import SensorRasters
from engine.stitcher import CropStitcher
from tests.engine.runs import Watcher, request_for, run_told
from train.data.synthetic import generate

pytestmark = pytest.mark.slow

SIZE_PX = 1408
"""Three by three tiles."""
BAND_PX = 32
"""Of pixels on each side of a switch; as wide as the halo."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Sensor, Path], NDArray[np.uint8]]:
    """Rasters of a procedural suburb, and its true classes."""
    folder = tmp_path_factory.mktemp("ground")
    scene = generate(seed=4_000_000, size_px=(SIZE_PX, SIZE_PX), gsd_m=0.2, style="suburb")
    paths = {}
    for sensor, bands in ((Sensor.RGIR, scene.rgir), (Sensor.NDSM, np.nan_to_num(scene.ndsm).astype(np.float32))):
        paths[sensor] = folder / f"{sensor}.tif"
        shape = {"count": len(bands), "height": SIZE_PX, "width": SIZE_PX, "dtype": bands.dtype}
        with rasterio.open(
            paths[sensor], "w", driver="GTiff", crs="EPSG:32632", transform=from_origin(5e5, 5.4e6, 0.2, 0.2), **shape
        ) as file:
            file.write(bands)
    return paths, scene.labels


def fly(paths: dict[Sensor, Path], output: Path, faults: str = "") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Classes and provenance of a watched run."""
    inject = parse_faults(faults) if faults else ()
    options = {"watch": True, "backend": "openvino", "precision": "auto", "inject": inject, "blend": "none"}
    run_told(request_for(demo.BUNDLE, paths, output, **options), Watcher())
    maps = []
    for name in ("classes", "provenance"):
        with rasterio.open(output / f"{name}.tif") as file:
            maps.append(file.read(1))
    return maps[0], maps[1]


def test_a_switch_of_engine_leaves_no_border_beyond_the_lost_information(ground, tmp_path) -> None:
    paths, truth = ground
    whole, _ = fly(paths, tmp_path / "whole")
    alone, _ = fly({Sensor.RGIR: paths[Sensor.RGIR]}, tmp_path / "alone")
    switched, provenance = fly(paths, tmp_path / "switched", "ndsm:dead@4,ndsm:dead@5")
    dead = provenance == Provenance.MISSING_NDSM
    assert 0.1 < dead.mean() < 0.4
    # nothing but the information is lost: each pixel is that of the map of its own sensors
    np.testing.assert_array_equal(switched, np.where(dead, alone, whole))

    near = np.zeros_like(dead)
    for axis in (0, 1):
        for shift in range(1, BAND_PX + 1):
            near |= (dead != np.roll(dead, shift, axis)) | (dead != np.roll(dead, -shift, axis))
    wrong = switched != truth
    # beside a switch each engine errs as often as it does in the same place without a switch, and the pixels on the
    # living side no more often than those of the dead one: there is no line to see but where the sensors change
    for side, reference in ((dead, alone), (~dead, whole)):
        assert wrong[near & side].mean() == pytest.approx((reference != truth)[near & side].mean())
    assert wrong[near & ~dead].mean() < wrong[near & dead].mean() + 0.05


def test_tiles_inferred_in_another_order_and_several_at_a_time_give_the_same_bytes(ground, tmp_path) -> None:
    paths, _ = ground
    expected, _ = fly(paths, tmp_path / "map")
    bundle = Bundle.load(demo.BUNDLE)
    specs = {sensor: bundle.manifest.sensor(sensor) for sensor in Sensor}
    with (
        SensorRasters.open(paths, specs) as rasters,
        BackendOptions(name="openvino").open(bundle, scenarios=[Scenario.FULL], wanted=CropStitcher.wanted) as backend,
    ):
        tile_px, halo_px = bundle.manifest.tile_px, bundle.manifest.halo_px
        stitcher = CropStitcher(height=SIZE_PX, width=SIZE_PX, tile_px=tile_px, halo_px=halo_px)
        answers = {}
        for tile in reversed(list(stitcher.grid.tiles(0))):
            window: Window = tile.reads
            seen = rasters.read(window.row, window.col, window.height, window.width)
            inputs = {sensor: np.ascontiguousarray(seen[sensor].values) for sensor in Sensor}
            answers[tile] = backend.submit(Scenario.FULL, inputs)
        for tile, answer in answers.items():
            classes = answer.result()[Output.CLASSES]
            target = tile.target
            found = classes[target.within(tile.reads)]
            place = np.s_[target.row : target.row + target.height, target.col : target.col + target.width]
            np.testing.assert_array_equal(found, expected[place])
