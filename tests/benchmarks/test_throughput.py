"""End-to-end figures are of the raster, the graph and the process that they are said to be of."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from benchmarks import throughput
from benchmarks.conditions import ROOT
from benchmarks.rasters import BLOCK_PX, COMPLETE_PX, write_raster
from benchmarks.throughput import fit_of
from benchmarks.tiles import tiles_of_run
from engine import demo
from engine.contract.sensors import Sensor


@pytest.mark.slow
def test_sizes_and_settings_have_a_row_each_and_a_line_is_fitted(toy_bundle, tmp_path, capsys) -> None:
    out = tmp_path / "throughput.csv"
    options = ["--mpx", "0.04,0.16", "--sensors", "rgir", "--rounds", "1", "--backend", "onnxruntime"]
    code = throughput.main(["--bundle", str(toy_bundle.root), *options, "--folder", str(tmp_path), "--out", str(out)])
    assert code == 0, capsys.readouterr().err
    rows = list(csv.DictReader(out.open()))
    stride = 64 - 2 * 8
    expected = [math.ceil((side - 16) / stride) ** 2 for side in (200, 400)]
    assert [(row["mpx"], row["sensors"], int(row["tiles"])) for row in rows] == [
        ("0.04", "rgir", expected[0]),
        ("0.16", "rgir", expected[1]),
    ]
    for row in rows:
        figures = {name: float(value) for name, value in row.items() if name.startswith(("share_", "latency_share_"))}
        assert sum(value for name, value in figures.items() if name.startswith("share_")) == pytest.approx(1, abs=0.01)
        assert sum(value for name, value in figures.items() if name.startswith("lat")) == pytest.approx(1, abs=0.01)
        assert 0 < float(row["read_busy"]) <= 1
        assert 0 < float(row["write_busy"]) <= 1
        ratio = float(row["stream_tiles_per_s"]) / float(row["bare_loop_tiles_per_s"])
        assert float(row["stream_over_loop"]) == pytest.approx(ratio, rel=0.01)
        assert row["library"].startswith("onnxruntime")
        assert float(row["fit_r2"]) == pytest.approx(1), "one round of two sizes"
    assert float(rows[0]["fit_s_per_mpx"]) * 0.12 == pytest.approx(
        float(rows[1]["wall_s"]) - float(rows[0]["wall_s"]), abs=0.02
    )
    assert "seconds = " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["throughput.csv"], "rasters and maps are removed"


def test_the_raster_repeats_the_complete_part_of_the_demo_scene_in_compressed_blocks(tmp_path) -> None:
    mpx, paths = write_raster(tmp_path, 1.2)
    side = round(1.2e6**0.5)
    assert mpx == side * side / 1e6
    for sensor, path in paths.items():
        with rasterio.open(demo.SCENE[sensor]) as file:
            scene, nodata = file.read()[:, : COMPLETE_PX[0], : COMPLETE_PX[1]], file.nodata
        with rasterio.open(path) as file:
            assert file.block_shapes == [(BLOCK_PX, BLOCK_PX)] * file.count
            assert file.compression.value == "DEFLATE"
            assert file.nodata == nodata
            assert file.dataset_mask().all(), "no sensor has a gap"
            np.testing.assert_array_equal(file.read(), np.tile(scene, (1, 2, 2))[:, :side, :side])


def test_bare_tiles_are_those_of_a_run(toy_bundle, tmp_path) -> None:
    _, paths = write_raster(tmp_path, 0.02)
    side = round(0.02e6**0.5)
    tiles = tiles_of_run(toy_bundle.manifest, paths, 1000)
    starts = [min(index * 48, side - 64) for index in range(math.ceil((side - 16) / 48))]
    with rasterio.open(paths[Sensor.NDSM]) as file:
        whole = file.read()
    windows = [whole[:, row : row + 64, col : col + 64] for row in starts for col in starts]
    np.testing.assert_array_equal(np.stack([tile[Sensor.NDSM] for tile in tiles]), np.stack(windows))
    assert len(tiles_of_run(toy_bundle.manifest, paths, 3)) == 3


def test_the_fit_is_the_line_that_the_times_were_made_from() -> None:
    rng = np.random.default_rng(0)
    sizes = [4.0, 64.0, 400.0] * 50
    rounds = [
        {"raster_mpx": mpx, "wall_s": 2 + 0.25 * mpx + rng.normal(0, 0.5), "peak_rss_mib": 430 + 0.01 * mpx}
        for mpx in sizes
    ]
    fitted = fit_of(rounds)
    assert fitted["fit_s_per_mpx"] == pytest.approx(0.25, abs=0.001)
    assert fitted["fit_s"] == pytest.approx(2, abs=0.3)
    assert 0.999 < fitted["fit_r2"] < 1
    assert fitted["fit_peak_rss_mib_per_mpx"] == pytest.approx(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands the peak of a process on to those it starts")
def test_peak_memory_is_not_that_of_the_process_that_started_it() -> None:
    child = "from engine.record import peak_rss_mib; print(peak_rss_mib())"
    parent = "import subprocess, sys; ballast = b'x' * (600 << 20); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", parent, child], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 10 < float(done.stdout) < 500


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--mpx", "much"), "--mpx takes megapixels"),
        (("--mpx", "4,0.001"), "at least one tile of 64 x 64 px"),
        (("--rounds", "0"), "--rounds must be at least 1"),
        (("--sensors", "radar", "--mpx", "0.01"), "radar"),
    ],
)
def test_wrong_options_are_explained_and_nothing_is_written(toy_bundle, tmp_path, capsys, options, named) -> None:
    out = tmp_path / "throughput.csv"
    assert throughput.main(["--bundle", str(toy_bundle.root), "--out", str(out), *options]) == 2
    assert named in capsys.readouterr().err
    assert not out.exists()
