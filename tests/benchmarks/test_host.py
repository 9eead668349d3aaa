"""The benchmark of the host maps real rasters, and says where the time went."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import rasterio

from benchmarks import host
from benchmarks.rasters import Layout, write_raster
from engine.contract.sensors import Sensor


@pytest.mark.slow
def test_each_case_has_a_row_whose_stages_make_up_its_processor_time(toy_bundle, tmp_path, capsys) -> None:
    out = tmp_path / "host.csv"
    options = ["--mpx", "0.06", "--cases", "health,warped", "--rounds", "1", "--folder", str(tmp_path)]
    assert host.main(["--bundle", str(toy_bundle.root), *options, "--out", str(out)]) == 0, capsys.readouterr().err
    rows = list(csv.DictReader(out.open()))
    assert [row["case"] for row in rows] == ["health", "warped"]
    for row in rows:
        stages = sum(float(row[f"{stage}_ms"]) for stage in (*host.STAGES, "rest"))
        assert stages == pytest.approx(float(row["cpu_ms_per_tile"]), rel=0.01)
        assert int(float(row["tiles"])) == 25
        assert float(row["read_ms"]) > 0
        assert float(row["floor_cpu_ms_per_tile"]) > 0
    assert float(rows[0]["health_ms"]) > 0 == float(rows[1]["health_ms"])
    assert [path.name for path in tmp_path.iterdir()] == ["host.csv"], "rasters and maps are removed"


@pytest.mark.parametrize("codec", ["zstd", "lerc", "jpeg", "none"])
def test_a_raster_is_stored_as_its_layout_says(tmp_path, codec) -> None:
    _, paths = write_raster(tmp_path, 0.3, Layout(codec=codec, block_px=256))
    with rasterio.open(paths[Sensor.RGIR]) as file:
        compression = file.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "none")
        assert compression.lower().removeprefix("ycbcr ") == codec
        assert file.block_shapes[0] == (256, 256)


def test_edges_lie_inside_the_raster_and_strips_span_it(tmp_path) -> None:
    _, paths = write_raster(tmp_path, 1.0, Layout(edges=True, block_px=None))
    for path in paths.values():
        with rasterio.open(path) as file:
            valid = file.dataset_mask() > 0
            assert file.block_shapes[0][1] == file.width
        assert 0.05 < 1 - np.mean(valid) < 0.7
