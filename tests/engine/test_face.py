"""``import engine``: the maps that a model makes in memory are those of a run on the same pixels, byte for byte."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

import engine
from engine import demo, model, options
from engine.contract.bundle import NODATA_CLASS
from engine.contract.errors import BundleError, EngineError, GridError, OutputError, RasterFormatError, UsageError
from engine.contract.sensors import Sensor
from engine.record import RunRecord
from tests.conftest import Scene, make_scene
from tests.engine.flight_scene import flight_scene
from tests.engine.runs import request_for, run_told
from tests.engine.test_live_run import untimed
from tests.engine.test_segment import MAPS, assert_equals_oracle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(toy_bundle) -> Iterator[engine.Model]:
    with engine.load(toy_bundle.root, backend="openvino", precision="fp32") as opened:
        yield opened


@pytest.fixture
def scene() -> Scene:
    return make_scene(149, 211)


def masked(scene: Scene) -> dict[str, np.ndarray]:
    """What a caller has in memory: RGIR masked where it saw nothing, nDSM NaN there."""
    rasters, valid = scene
    mask = np.broadcast_to(~valid[Sensor.RGIR], rasters[Sensor.RGIR].shape)
    ndsm = np.where(valid[Sensor.NDSM], rasters[Sensor.NDSM][0], np.float32(np.nan))
    return {"rgir": np.ma.array(rasters[Sensor.RGIR], mask=mask), "ndsm": ndsm}


def assert_same_files(one: Path, other: Path, *names: str) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def maps(result: engine.Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return result.classes, result.confidence, result.provenance


def assert_same_maps(one: engine.Result, other: engine.Result) -> None:
    for mine, its in zip(maps(one), maps(other), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("how", ["paths", "datasets"])
def test_a_saved_result_is_what_a_run_writes(how, toy, toy_bundle, scene, write_scene, tmp_path) -> None:
    paths = write_scene(scene)
    ran = run_told(request_for(toy_bundle, paths, tmp_path / "run", backend="openvino", watch=True))
    if how == "paths":
        result = toy.segment(rgir=str(paths[Sensor.RGIR]), ndsm=paths[Sensor.NDSM])
    else:
        with rasterio.open(paths[Sensor.RGIR]) as rgir, rasterio.open(paths[Sensor.NDSM]) as ndsm:
            result = toy.segment(rgir=rgir, ndsm=ndsm)
            assert not rgir.closed, "whoever opens a dataset closes it"
    assert result.save(tmp_path / "map") == tmp_path / "map"
    assert_same_files(tmp_path / "map", tmp_path / "run", *MAPS, "quicklook.png")
    assert {path.name for path in (tmp_path / "map").iterdir()} == {path.name for path in (tmp_path / "run").iterdir()}
    assert RunRecord.read(tmp_path / "map" / "run.json") == result.record
    saved = json.loads((tmp_path / "map" / "run.json").read_text())
    assert untimed(saved) == untimed(ran)
    rows = [
        [line.split(",")[:13] for line in (tmp_path / name / "tiles.csv").read_text().splitlines()]
        for name in ("map", "run")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("blend", ["none", "hann"])
def test_arrays_give_the_bytes_that_files_give(blend, toy, scene, write_scene, tmp_path) -> None:
    paths = write_scene(scene)
    from_files = toy.segment(rgir=paths[Sensor.RGIR], ndsm=paths[Sensor.NDSM], blend=blend)
    from_arrays = toy.segment(**masked(scene), blend=blend)
    assert_same_maps(from_files, from_arrays)
    from_arrays.save(tmp_path / "map")
    if blend == "none":
        assert_equals_oracle(tmp_path / "map", scene, set(Sensor))
    assert (from_arrays.classes == NODATA_CLASS).any()
    assert {each.dtype for each in maps(from_arrays)} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("alive", list(Sensor))
def test_one_sensor_is_enough(alive, toy, scene, tmp_path) -> None:
    result = toy.segment(**{alive: masked(scene)[alive]}, blend="none")
    result.save(tmp_path / "map")
    assert_equals_oracle(tmp_path / "map", scene, {alive})
    assert not result.record.health.watched


def test_an_array_larger_than_memory_is_read_by_windows_and_mapped_on_disk(toy, tmp_path, monkeypatch) -> None:
    rasters, _ = make_scene(150, 170, holes=False)
    expected = toy.segment(rgir=rasters[Sensor.RGIR], ndsm=rasters[Sensor.NDSM])
    monkeypatch.setattr("engine.result.IN_MEMORY_PX", 1000)
    mapped = {}
    for sensor, values in rasters.items():
        np.save(tmp_path / f"{sensor}.npy", values)
        mapped[sensor.value] = np.load(tmp_path / f"{sensor}.npy", mmap_mode="r")
    result = toy.segment(**mapped)
    assert isinstance(result.classes, np.memmap)
    assert_same_maps(result, expected)


def test_heights_in_decimetres_are_scaled(toy, scene) -> None:
    rasters, _ = make_scene(100, 100, holes=False)
    decimetres = np.rint(rasters[Sensor.NDSM][0] * 10).astype(np.int16)
    scaled = toy.segment(ndsm=decimetres, ndsm_scale_m=0.1)
    assert_same_maps(scaled, toy.segment(ndsm=decimetres.astype(np.float32) * np.float32(0.1)))


def test_a_stream_keeps_the_order_and_gives_each_frame_the_map_of_its_own(toy) -> None:
    scenes = [make_scene(*size, holes=False, seed=seed) for seed, size in enumerate([(90, 131), (64, 64), (150, 70)])]
    frames = [{sensor.value: values for sensor, values in rasters.items()} for rasters, _ in scenes]
    results = list(toy.stream(frames, watch=False))
    assert len(results) == 3
    for frame, result in zip(frames, results, strict=True):
        assert_same_maps(result, toy.segment(**frame, watch=False))
    pairs = [(frame["rgir"], frame["ndsm"]) for frame in frames]
    for one, other in zip(toy.stream(pairs, watch=False), results, strict=True):
        assert_same_maps(one, other)


def test_a_stream_watches_its_sensors_and_switches_engines(toy) -> None:
    """One tile a frame; a sensor that repeats itself is dead in that very frame, and believed in the third good one."""
    strip, _ = flight_scene(40, 700)
    seen = [{sensor: values[:, :, 60 * n : 60 * n + 50] for sensor, values in strip.items()} for n in range(9)]
    frames = [{sensor.value: values for sensor, values in frame.items()} for frame in seen]
    frames[3]["ndsm"] = frames[2]["ndsm"]
    results = list(toy.stream(frames, watch=True))
    provenance = [set(np.unique(result.provenance).tolist()) for result in results]
    assert provenance == [{1}] * 3 + [{2}] * 3 + [{1}] * 3
    assert [change.fault for change in results[3].record.health.changes] == ["frozen"]
    assert [change.state for change in results[6].record.health.changes] == ["alive"]
    assert results[4].record.health.change_count == 0, "it was dead before"
    frames[3]["ndsm"] = None
    assert [set(np.unique(r.provenance).tolist()) for r in toy.stream(frames)][3] == {2}


def test_a_stream_reads_ahead_no_further_than_it_must_and_ends_when_it_is_left(toy) -> None:
    taken: list[int] = []
    scene, _ = make_scene(40, 50, holes=False)

    def camera() -> Iterator[dict[str, np.ndarray]]:
        for number in range(1000):
            taken.append(number)
            yield {sensor.value: values for sensor, values in scene.items()}

    before = set(threading.enumerate())  # other tests leave threads behind that never answer
    results = toy.stream(camera(), watch=False)
    next(results)
    results.close()
    assert len(taken) < 40
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if thread.name in ("stream", "read")]


def test_an_error_of_the_frames_reaches_who_takes_the_results(toy) -> None:
    scene, _ = make_scene(40, 50, holes=False)

    def camera() -> Iterator[dict[str, np.ndarray]]:
        yield {sensor.value: values for sensor, values in scene.items()}
        raise OSError("camera unplugged")

    results = toy.stream(camera())
    next(results)
    with pytest.raises(OSError, match="camera unplugged"):
        next(results)


@pytest.mark.slow
def test_the_demo_runs_in_five_lines(tmp_path) -> None:
    with engine.load(precision="fp32") as opened:
        result = opened.segment(rgir=demo.SCENE[Sensor.RGIR], ndsm=demo.SCENE[Sensor.NDSM])
        result.save(tmp_path / "map")
        for streamed in opened.stream([dict(demo.SCENE)], watch=True):
            assert_same_maps(streamed, result)
    done = subprocess.run(
        [sys.executable, "-m", "engine.run", "--output", str(tmp_path / "run"), "--precision", "fp32", "--quiet"],
        cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0
    assert_same_files(tmp_path / "map", tmp_path / "run", *MAPS, "quicklook.png")
    assert result.class_names[0] == "impervious surface"


RGIR, NDSM = np.zeros((3, 80, 90), np.uint8), np.zeros((80, 90), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, UsageError, "rgir or ndsm must be given"),
        ({"rgir": RGIR, "halo_px": 40}, UsageError, "halo_px must be at least 0 and below half the tile of 64 px"),
        ({"rgir": RGIR, "halo_px": 20, "blend": "hann"}, UsageError, "halo_px must be at most a quarter"),
        ({"rgir": RGIR[:2]}, RasterFormatError, r"rgir must be an array \[3, H, W\] .* received \[2, 80, 90\]"),
        ({"rgir": RGIR.astype(np.float32)}, RasterFormatError, "rgir must be 8-bit .* received float32"),
        ({"ndsm": NDSM.astype(np.int32)}, RasterFormatError, "pass ndsm_scale_m"),
        ({"ndsm": NDSM, "ndsm_scale_m": -1.0}, RasterFormatError, "ndsm_scale_m must be a positive number"),
        (
            {"rgir": RGIR, "ndsm": NDSM[:50]},
            GridError,
            "ndsm must have the size of rgir .* received 90 x 50",
        ),
        ({"rgir": "nowhere.tif"}, EngineError, "nowhere.tif does not exist: check the path given as rgir"),
        ({"rgir": RGIR, "watch": False, "health": ("rgir.noise=off",)}, UsageError, "`health` needs .* watch=True"),
    ],
)
def test_errors_name_the_argument(arguments, error, says, toy) -> None:
    with pytest.raises(error, match=says) as caught:
        toy.segment(**arguments)
    assert "--" not in str(caught.value)


def test_other_errors_name_theirs(toy, tmp_path) -> None:
    with pytest.raises(UsageError, match="`threads` must be a positive number, received 0"):
        engine.load(threads=0)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        engine.load(tmp_path)
    with pytest.raises(UsageError, match="each frame needs a raster, received none in frame 0"):
        next(toy.stream([{"rgir": None}]))
    with pytest.raises(UsageError, match="rgir and ndsm, received lidar"):
        next(toy.stream([{"lidar": RGIR}]))
    result = toy.segment(ndsm=NDSM)
    result.save(tmp_path / "map")
    with pytest.raises(OutputError, match="overwrite=True"):
        result.save(tmp_path / "map")
    result.save(tmp_path / "map", overwrite=True)


def test_importing_the_face_loads_no_library_that_infers_or_reads() -> None:
    script = (
        "import sys, engine\n"
        "heavy = {'openvino', 'onnxruntime', 'torch', 'rasterio', 'numpy', 'tensorrt'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'load', 'Model', 'Result', 'UsageError'} <= set(dir(engine))\n"
        "engine.load, engine.Model\n"
        "heavy = {'openvino', 'onnxruntime', 'torch', 'tensorrt'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [model, options])
def test_docstrings_say_what_happens(module) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0


def test_a_model_takes_height_models_and_an_item_and_saves_polygons(toy, scene, write_scene, tmp_path) -> None:
    paths = write_scene(scene)
    with rasterio.open(paths[Sensor.NDSM]) as file:
        heights, profile = file.read(1), file.profile
    for name, values in (("dsm", np.where(heights == profile["nodata"], heights, heights + 128)), ("dtm", 128.0)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as made:
            made.write(np.broadcast_to(values, heights.shape).astype(np.float32), 1)
            made.units = ("m",)
    models = {name: str(tmp_path / f"{name}.tif") for name in ("dsm", "dtm")}
    result = toy.segment(rgir=paths[Sensor.RGIR], **models)
    assert_same_maps(result, toy.segment(rgir=paths[Sensor.RGIR], ndsm=paths[Sensor.NDSM]))
    for given, told in (
        ({**models, "ndsm": paths[Sensor.NDSM]}, "pass those two, or `ndsm`"),
        ({"dsm": models["dsm"]}, "add `dtm`, or ground=auto"),
        ({**models, "ground": "auto"}, "leave one of them away"),
        ({**models, "stac": "item.json"}, "leave `dsm` away"),
        ({}, "received neither"),
        ({"rgir": paths[Sensor.RGIR], "readers": 0}, "`readers` must be at least 1"),
    ):
        with pytest.raises(UsageError, match=told):
            toy.segment(**given)
    item = tmp_path / "item.json"
    result.save(tmp_path / "map", polygons=tmp_path / "cover.gpkg")
    assert b"land_cover" in (tmp_path / "cover.gpkg").read_bytes()
    with pytest.raises(UsageError, match="pass overwrite=True"):
        result.save(tmp_path / "other", polygons=tmp_path / "cover.gpkg")
    assert not (tmp_path / "other").exists(), "told before anything is written"
    audited = toy.segment(rgir=paths[Sensor.RGIR], **models, audit_every=3, readers=1)
    assert audited.record.health.audit.every_tiles == 3
    told = {"href": str(paths[Sensor.RGIR]), "bands": [{"name": each} for each in ("nir", "red", "green")]}
    feature = {"type": "Feature", "stac_version": "1.1.0", "id": "a", "geometry": None, "links": []}
    dated = {"properties": {"datetime": "2026-05-01T00:00:00Z"}, "assets": {"image": told}}
    item.write_text(json.dumps({**feature, **dated}))
    assert_same_maps(toy.segment(stac=item), toy.segment(rgir=paths[Sensor.RGIR]))
