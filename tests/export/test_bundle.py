"""What lies in a bundle besides the graphs, how it gets into its place, and what the command line refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import rasterio
from rasterio.transform import from_origin

from engine.contract.bundle import GOLDEN_STRIDE, Bundle, golden_prefix, load_manifest
from engine.contract.errors import BundleError, GridError, OutputError, RasterFormatError, RasterOpenError, UsageError
from engine.contract.sensors import Scenario, Sensor
from export.golden import GoldenInputs, scene_tile, synthetic_tile, write_golden
from export.pack import number_of, publishing, training_of
from export.run import main
from tests.export.conftest import HELD_OUT, STEP, TILE_PX, Exported, random_model, save_checkpoint, save_metrics
from train import checkpoint
from train.data import synthetic

ROOT = Path(__file__).parents[2]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_raster(path: Path, bands: np.ndarray, nodata: float | None = None) -> None:
    count, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=bands.dtype,
        nodata=nodata,
        crs="EPSG:25832",
        transform=from_origin(0, 0, 0.2, 0.2),
    ) as file:
        file.write(bands)


# --- the manifest


def test_the_manifest_describes_the_model_and_its_scores(exported: Exported) -> None:
    manifest = exported.bundle.manifest
    assert manifest.name == "tiny"
    assert manifest.created_utc == "1970-01-02T00:00:00Z"
    assert manifest.sensors == exported.model.config.sensor_specs
    assert [spec.name for spec in manifest.classes][1::3] == ["building", "car"]
    assert manifest.classes[4].rgb == (255, 255, 0)
    assert manifest.gsd_m == synthetic.GSD_RANGE_M
    assert manifest.best_gsd_m == (0.1, 0.4)
    assert manifest.tile_px == TILE_PX
    assert 0 <= manifest.halo_px <= TILE_PX // 4
    assert manifest.training.held_out == HELD_OUT
    assert manifest.training.steps == STEP
    found = {(score.scenario, score.input): score.mean_f1 for score in manifest.training.scores}
    assert found[Scenario.MISSING_RGIR, "generator"] == 0.75
    assert found[Scenario.MISSING_RGIR, "zeros"] == 0.5
    assert len(found) == 7
    assert {"export/openvino", "export/nvidia-modelopt", "export/torch", "train/torch"} <= manifest.tools.keys()


def test_the_bundle_holds_the_files_of_its_manifest_and_no_more(exported: Exported) -> None:
    named = {ref.path for ref in exported.bundle.manifest.files()}
    graphs = {f"{scenario}{infix}.onnx" for scenario in Scenario for infix in ("", ".fp16")}
    assert named == graphs | {"weights.bin", "weights.fp16.bin", "golden.npz"}
    assert tree(exported.bundle.root).keys() == named | {"manifest.json"}
    assert [p.name for p in exported.bundle.root.parent.iterdir() if p.name.startswith(".")] == []


def test_progress_shows_the_halo_the_surgery_the_sharing_and_the_parity(exported: Exported) -> None:
    for part in (
        "24..32 px",
        "exported full",
        "removed 2: rgir/Max, rgir/Min",
        "weights in fp16",
        "sharing saves",
        "missing_rgir  fp16 openvino",
    ):
        assert part in exported.output


def test_without_metrics_the_validation_scores_are_used(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, random_model(seed=0))
    training = training_of(path, checkpoint.load(path)[1], None)
    assert {(score.input, score.mean_f1) for score in training.scores} == {("generator", 0.25)}
    assert "validation" in training.held_out


def test_metrics_of_other_weights_are_refused(exported: Exported, tmp_path: Path) -> None:
    info = checkpoint.load(exported.checkpoint)[1]
    stale = tmp_path / "stale.json"
    save_metrics(stale, step=STEP + 1)
    with pytest.raises(UsageError, match=f"received step {STEP + 1} .* of step {STEP}"):
        training_of(exported.checkpoint, info, stale)
    with pytest.raises(UsageError, match="absent.json"):
        training_of(exported.checkpoint, info, tmp_path / "absent.json")


# --- the golden tile


def _tile_of(name: str) -> int:
    head = name.partition("/")[0]
    return int(head) if head.isdigit() else 0


@pytest.mark.parametrize("tile", range(3))
def test_the_golden_tiles_are_what_a_runtime_answers(exported: Exported, tile: int) -> None:
    assert exported.bundle.manifest.golden_tiles == 3
    with np.load(exported.bundle.golden_path) as found:
        golden = {name.removeprefix(golden_prefix(tile)): found[name] for name in found if tile == _tile_of(name)}
    assert golden["rgir"].shape == (3, TILE_PX, TILE_PX)
    assert golden["rgir"].dtype == np.uint8
    assert golden["ndsm"].shape == (1, TILE_PX, TILE_PX)
    assert golden["ndsm"].dtype == np.float32
    assert np.isfinite(golden["ndsm"]).all()
    for scenario in Scenario:
        session = onnxruntime.InferenceSession(
            exported.bundle.graph(scenario, "fp32"), providers=["CPUExecutionProvider"]
        )
        fed = {sensor.value: golden[sensor.value][None] for sensor in Sensor if sensor in scenario.sensors}
        classes, probabilities = session.run(["classes", "probabilities"], fed)
        assert golden[f"{scenario}/classes"].dtype == np.uint8
        assert (golden[f"{scenario}/classes"] == classes[0]).mean() >= 0.999
        expected = golden[f"{scenario}/probabilities"]
        assert expected.dtype == np.float16
        assert expected.shape == (6, TILE_PX // GOLDEN_STRIDE, TILE_PX // GOLDEN_STRIDE)
        sampled = probabilities[0, :, ::GOLDEN_STRIDE, ::GOLDEN_STRIDE]
        np.testing.assert_allclose(expected, sampled, rtol=0, atol=1e-3)


def test_the_golden_file_does_not_depend_on_the_hour(tmp_path: Path) -> None:
    tile = synthetic_tile(seed=1, size_px=64)
    path = tmp_path / "golden.npz"
    write_golden(path, [(tile, {Scenario.FULL: (np.zeros((64, 64), np.uint8), np.zeros((6, 64, 64), np.float32))})])
    with zipfile.ZipFile(path) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    loaded = np.load(path)
    np.testing.assert_array_equal(loaded["ndsm"], tile.ndsm)
    np.testing.assert_array_equal(tile.ndsm, np.round(tile.ndsm.astype(np.float64), 2).astype(np.float32))


def test_a_scene_gives_its_centre(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgir = rng.integers(0, 256, (3, 100, 81), np.uint8)
    ndsm = rng.integers(0, 2000, (1, 100, 81)).astype(np.float32) / 100
    write_raster(tmp_path / "rgir.tif", rgir)
    write_raster(tmp_path / "ndsm.tif", ndsm)
    tile = scene_tile(tmp_path, 64)
    np.testing.assert_array_equal(tile.rgir, rgir[:, 18:82, 8:72])
    np.testing.assert_array_equal(tile.ndsm, ndsm[:, 18:82, 8:72])


def test_a_scene_smaller_than_a_tile_is_mirrored_and_its_holes_are_filled(tmp_path: Path) -> None:
    rgir = np.arange(3 * 20 * 64, dtype=np.uint32).reshape(3, 20, 64).astype(np.uint8)
    ndsm = np.full((1, 20, 64), 5, np.float32)
    ndsm[0, 3:6, 10:20] = -9999
    write_raster(tmp_path / "rgir.tif", rgir)
    write_raster(tmp_path / "ndsm.tif", ndsm, nodata=-9999)
    tile = scene_tile(tmp_path, 64)
    np.testing.assert_array_equal(tile.rgir, np.concatenate([rgir, rgir[:, ::-1], rgir, rgir[:, ::-1]], 1)[:, :64])
    np.testing.assert_array_equal(tile.ndsm, np.full((1, 64, 64), 5, np.float32))


def test_scenes_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(RasterOpenError, match=r"rgir\.tif"):
        scene_tile(tmp_path, 64)
    write_raster(tmp_path / "rgir.tif", np.zeros((3, 64, 64), np.uint16))
    with pytest.raises(RasterFormatError, match="8-bit, received uint16"):
        scene_tile(tmp_path, 64)
    write_raster(tmp_path / "rgir.tif", np.zeros((3, 64, 64), np.uint8))
    write_raster(tmp_path / "ndsm.tif", np.zeros((2, 64, 64), np.float32))
    with pytest.raises(RasterFormatError, match="1 band"):
        scene_tile(tmp_path, 64)
    write_raster(tmp_path / "ndsm.tif", np.zeros((1, 64, 65), np.float32))
    with pytest.raises(GridError, match=r"\(64, 64\) for rgir and \(64, 65\) for ndsm"):
        scene_tile(tmp_path, 64)


def test_a_tile_with_a_hole_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="finite"):
        GoldenInputs(rgir=np.zeros((3, 8, 8), np.uint8), ndsm=np.full((1, 8, 8), np.nan, np.float32))


def test_golden_tiles_are_renewed_and_nothing_else(exported: Exported, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported.bundle.root, tmp_path / "bundle"))
    (root / "manifest.json.sig").write_text("of the old manifest")
    renew = [str(exported.checkpoint), "--bundle", str(root), "--golden-only", "--golden-tiles", "2"]
    assert main(renew) == UsageError.exit_code
    assert main([*renew, "--overwrite", "--golden-seed", "5", "--gsd-range", "0.2", "0.3"]) == 0
    before, after = exported.bundle.manifest, Bundle.load(root).manifest
    assert (after.golden_tiles, after.number) == (2, before.number + 1)
    assert replace(after, golden=before.golden, golden_tiles=3, number=before.number, best_gsd_m=(0.1, 0.4)) == before
    assert after.best_gsd_m == (0.2, 0.3)
    changed = {name for name, content in tree(root).items() if tree(exported.bundle.root).get(name) != content}
    assert changed == {"golden.npz", "manifest.json"}


def test_another_models_answers_are_not_published(exported: Exported, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported.bundle.root, tmp_path / "bundle"))
    save_checkpoint(tmp_path / "other.safetensors", random_model(seed=1))
    renew = [str(tmp_path / "other.safetensors"), "--bundle", str(root), "--golden-only", "--overwrite"]
    assert main(renew) == BundleError.exit_code
    assert tree(root) == tree(exported.bundle.root)


def test_the_number_grows_with_every_bundle(exported: Exported, tmp_path: Path) -> None:
    root = exported.bundle.root
    assert number_of(tmp_path, None) == 0
    assert number_of(tmp_path, 7) == 7
    assert load_manifest(root).number == 0
    assert number_of(root, None) == 1
    assert number_of(root, 5) == 5
    with pytest.raises(UsageError, match="--number must grow with every bundle, received 0 after 0"):
        number_of(root, 0)
    (tmp_path / "manifest.json").write_text("{")
    assert number_of(tmp_path, 3) == 3
    with pytest.raises(UsageError, match="pass --number"):
        number_of(tmp_path, None)


# --- putting it in place


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with publishing(tmp_path / "bundle", overwrite=False) as folder:
            (folder / "weights.bin").write_bytes(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_bundle(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")

    def fail() -> None:
        with publishing(target, overwrite=True) as folder:
            (folder / "manifest.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert tree(tmp_path) == {"bundle/manifest.json": b"old"}


def test_a_bundle_is_replaced_whole_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    for content, overwrite in ((b"first", False), (b"second", True)):
        with publishing(target, overwrite=overwrite) as folder:
            (folder / "manifest.json").write_bytes(content)
            (folder / content.decode()).touch()
    assert tree(tmp_path) == {"deep/bundle/manifest.json": b"second", "deep/bundle/second": b""}
    with pytest.raises(OutputError, match="--overwrite"), publishing(target, overwrite=False):
        pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_bundle_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    folder, file = tmp_path / "photos", tmp_path / "file"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"dear")
    file.write_bytes(b"also dear")
    before = tree(tmp_path)
    for target in (folder, file):
        with pytest.raises(OutputError, match="is no bundle"), publishing(target, overwrite=overwrite):
            pass
    assert tree(tmp_path) == before


# --- the command line


def test_a_bundle_that_is_there_stops_the_command_at_once(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(exported.checkpoint), "--bundle", str(exported.bundle.root)]) == OutputError.exit_code
    assert "--overwrite" in capsys.readouterr().err
    assert Bundle.load(exported.bundle.root).digest == exported.bundle.digest


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--tile", "100"], UsageError.exit_code, "multiple of 32 px for this model, received 100"),
        (["--halo", "64", "--tile", "128"], UsageError.exit_code, r"--halo must lie in \[0, tile / 2\), received 64"),
        (["--gsd-range", "0.5", "0.1"], UsageError.exit_code, "the finest and the coarsest metres a pixel"),
        (["--precision", "fp16"], UsageError.exit_code, "fp32 or fp32,fp16, received 'fp16'"),
        (["--golden-scene", "nowhere"], RasterOpenError.exit_code, "rgir.tif"),
        (["--metrics", "nowhere.json"], UsageError.exit_code, "nowhere.json"),
    ],
)
def test_options_that_do_not_fit_are_named(
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    exit_code: int,
    message: str,
) -> None:
    assert main([str(exported.checkpoint), "--bundle", str(tmp_path / "out"), *options]) == exit_code
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not safetensors")
    for path in (tmp_path / "absent.safetensors", broken):
        assert main([str(path), "--bundle", str(tmp_path / "out")]) == UsageError.exit_code
        assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_needs_neither_torch_nor_onnx() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'openvino', 'safetensors'): sys.modules[name] = None\n"
        "from export.run import main\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python -m export.run runs/mine/best.safetensors --bundle" in done.stdout


def test_a_missing_library_names_its_extra(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from export.run import main\n"
        f"sys.exit(main(['x', '--bundle', {str(tmp_path / 'bundle')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == UsageError.exit_code
    assert "gemmnet-edge[export,train]" in done.stderr
