"""A small bundle whose answer numpy can compute for a whole raster at once: the oracle of every tiling test."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
from hypothesis import Phase, settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rasterio.transform import from_origin

from engine.backends.instruction_sets import VARIABLE, available
from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.bundle import (
    GOLDEN_STRIDE,
    NODATA_CLASS,
    SCHEMA_VERSION,
    Bundle,
    ClassSpec,
    FileRef,
    Manifest,
    Training,
    save_manifest,
)
from engine.contract.health import default_limits
from engine.contract.proof import prove
from engine.contract.sensors import Provenance, Scenario, Sensor

# Few examples, the same in every run. To search: python -m pytest tests/engine/test_properties.py \
#     --hypothesis-profile=thorough
SEARCH = (Phase.explicit, Phase.generate)  # shrinking may take minutes: leave it to the thorough profile
settings.register_profile("repeatable", deadline=None, max_examples=25, derandomize=True, phases=SEARCH)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("repeatable")

os.environ["GEMMNET_CACHE"] = ""  # nothing is kept from test to test, nor in the home of who runs them

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Workers send what a test printed as UTF-8, and tests print names of files that are none."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


CLASSES = 4
CHANNELS = {Sensor.RGIR: 3, Sensor.NDSM: 1}
UNIT = {Sensor.RGIR: 1 / 255, Sensor.NDSM: 1 / 10}


def kernels(scenario: Scenario, radius: int) -> dict[Sensor, NDArray[np.float32]]:
    """Convolution weights [C, B, k, k] of one scenario's toy graph; each scenario answers differently."""
    rng = np.random.default_rng(list(Scenario).index(scenario))
    size = 2 * radius + 1
    return {
        sensor: (rng.normal(size=(CLASSES, CHANNELS[sensor], size, size)) * 6 / size).astype(np.float32)
        for sensor in Sensor
        if sensor in scenario.sensors
    }


def toy_probabilities(scenario: Scenario, inputs: Mapping[Sensor, NDArray], radius: int) -> NDArray[np.float32]:
    """What the toy graph answers, [C, H, W], by shifting whole rasters in numpy; zero beyond the border."""
    logits = np.float64(0)
    for sensor, weights in kernels(scenario, radius).items():
        values = np.pad(inputs[sensor].astype(np.float64) * UNIT[sensor], ((0, 0), (radius, radius), (radius, radius)))
        height, width = inputs[sensor].shape[1:]
        for row in range(2 * radius + 1):
            for col in range(2 * radius + 1):
                shifted = values[:, row : row + height, col : col + width]
                logits = logits + np.einsum("cb,bhw->chw", weights[:, :, row, col], shifted)
    exponent = np.exp(logits - logits.max(axis=0))
    return (exponent / exponent.sum(axis=0)).astype(np.float32)


def toy_map(
    rasters: Mapping[Sensor, NDArray], valid: Mapping[Sensor, NDArray[np.bool_]], radius: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Expected classes, confidence and provenance of a whole raster."""
    shape = next(iter(rasters.values())).shape[1:]
    classes, confidence = np.full(shape, NODATA_CLASS, np.uint8), np.zeros(shape, np.uint8)
    provenance = np.zeros(shape, np.uint8)
    for scenario in Scenario:
        if not scenario.sensors <= set(rasters):
            continue
        mine = np.ones(shape, bool)
        for sensor in Sensor:
            alive = valid.get(sensor, np.zeros(shape, bool))
            mine &= alive if sensor in scenario.sensors else ~alive
        probabilities = toy_probabilities(scenario, rasters, radius)
        classes[mine] = probabilities.argmax(axis=0)[mine]
        confidence[mine] = np.rint(probabilities.max(axis=0) * 255)[mine]
        provenance[mine] = Provenance[scenario.name]
    return classes, confidence, provenance


def _toy_graph(scenario: Scenario, radius: int, tile_px: int, path: Path) -> None:
    nodes, initializers, inputs, terms = [], [], [], []
    for sensor, weights in kernels(scenario, radius).items():
        dtype = TensorProto.UINT8 if sensor is Sensor.RGIR else TensorProto.FLOAT
        shape = ["batch", CHANNELS[sensor], tile_px, tile_px]
        inputs.append(helper.make_tensor_value_info(sensor.value, dtype, shape))
        initializers += [
            numpy_helper.from_array(weights, f"{sensor}_weights"),
            numpy_helper.from_array(np.float32(UNIT[sensor]), f"{sensor}_unit"),
        ]
        nodes += [
            helper.make_node("Cast", [sensor.value], [f"{sensor}_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{sensor}_float", f"{sensor}_unit"], [f"{sensor}_scaled"]),
            helper.make_node(
                "Conv", [f"{sensor}_scaled", f"{sensor}_weights"], [f"{sensor}_logits"], pads=[radius] * 4
            ),
        ]
        terms.append(f"{sensor}_logits")
    initializers += [numpy_helper.from_array(np.float32(255), "n255"), numpy_helper.from_array(np.array([1]), "axis")]
    nodes += [
        helper.make_node("Sum", terms, ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["winner"], axis=1, keepdims=0),
        helper.make_node("Cast", ["winner"], ["classes"], to=TensorProto.UINT8),
        helper.make_node("ReduceMax", ["probabilities", "axis"], ["best"], keepdims=0),
        helper.make_node("Mul", ["best", "n255"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["confidence"], to=TensorProto.UINT8),
    ]
    outputs = [
        helper.make_tensor_value_info("classes", TensorProto.UINT8, ["batch", tile_px, tile_px]),
        helper.make_tensor_value_info("confidence", TensorProto.UINT8, ["batch", tile_px, tile_px]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES, tile_px, tile_px]),
    ]
    graph = helper.make_graph(nodes, scenario.value, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_toy_bundle(root: Path, *, tile_px: int = 64, halo_px: int = 8, radius: int = 0) -> Bundle:
    """A complete, verified bundle around the toy graphs."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tile = {
        Sensor.RGIR: rng.integers(0, 256, (3, tile_px, tile_px), np.uint8),
        Sensor.NDSM: rng.uniform(0, 20, (1, tile_px, tile_px)).astype(np.float32),
    }
    golden = {sensor.value: values for sensor, values in tile.items()}
    for scenario in Scenario:
        _toy_graph(scenario, radius, tile_px, root / f"{scenario}.onnx")
        probabilities = toy_probabilities(scenario, tile, radius)
        golden[f"{scenario}/classes"] = probabilities.argmax(axis=0).astype(np.uint8)
        golden[f"{scenario}/probabilities"] = probabilities[:, ::GOLDEN_STRIDE, ::GOLDEN_STRIDE].astype(np.float16)
    np.savez_compressed(root / "golden.npz", **golden)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="toy",
        created_utc="2026-01-01T00:00:00+00:00",
        classes=tuple(ClassSpec(name=f"class {i}", rgb=(60 * i, 255 - 60 * i, 90)) for i in range(CLASSES)),
        sensors=(rgir_spec(), ndsm_spec()),
        gsd_m=(0.05, 1.0),
        # toy scenes are noise, which no sensor delivers
        health={sensor: replace(limits, noise=None) for sensor, limits in default_limits().items()},
        tile_px=tile_px,
        halo_px=halo_px,
        graphs={scenario: {"fp32": FileRef.of(root / f"{scenario}.onnx", root)} for scenario in Scenario},
        weights=(),
        golden=FileRef.of(root / "golden.npz", root),
        training=Training(command="none", dataset="none", steps=0, held_out="none", scores=()),
    )
    save_manifest(manifest, root)
    return Bundle.load(root)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Pixelwise graphs, 64 px tiles, 8 px halo."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Graphs whose answer depends on 6 px around each pixel; 8 px halo."""
    return write_toy_bundle(tmp_path_factory.mktemp("wide"), radius=6)


Scene = tuple[dict[Sensor, NDArray], dict[Sensor, NDArray[np.bool_]]]


def make_scene(height: int, width: int, *, holes: bool = True, seed: int = 1) -> Scene:
    """Smooth random rasters; with holes, RGIR ends on a diagonal and nDSM lacks a block, a column and dots."""
    rng = np.random.default_rng(seed)

    def smooth(bands: int) -> NDArray[np.float64]:
        coarse = rng.uniform(0, 1, (bands, height // 16 + 2, width // 16 + 2))
        return np.kron(coarse, np.ones((16, 16)))[:, :height, :width] * 0.7 + rng.uniform(
            0, 0.3, (bands, height, width)
        )

    rasters = {
        Sensor.RGIR: (1 + smooth(3) * 254).astype(np.uint8),
        Sensor.NDSM: (smooth(1) * 20).astype(np.float32),
    }
    valid = {sensor: np.ones((height, width), bool) for sensor in Sensor}
    if holes:
        rows, cols = np.mgrid[:height, :width]
        valid[Sensor.RGIR][rows + cols < (height + width) // 6] = False
        valid[Sensor.NDSM][height // 4 : height // 4 + 3 * height // 5, width // 3 : width // 3 + 2 * width // 5] = (
            False
        )
        valid[Sensor.NDSM][:, width - 5 :] = False
        valid[Sensor.NDSM][rng.uniform(size=(height, width)) < 0.01] = False
    return rasters, valid


@pytest.fixture
def write_scene(tmp_path: Path) -> Callable[[Scene], dict[Sensor, Path]]:
    """Write a scene as two GeoTIFFs, 0 and -9999 where a sensor saw nothing."""

    def write(scene: Scene, folder: str = "scene") -> dict[Sensor, Path]:
        rasters, valid = scene
        (tmp_path / folder).mkdir(exist_ok=True)
        paths = {}
        for sensor, values in rasters.items():
            nodata = 0 if sensor is Sensor.RGIR else -9999
            paths[sensor] = tmp_path / folder / f"{sensor}.tif"
            with rasterio.open(
                paths[sensor],
                "w",
                driver="GTiff",
                height=values.shape[1],
                width=values.shape[2],
                count=len(values),
                dtype=values.dtype,
                crs="EPSG:2154",
                transform=from_origin(650000, 6860000, 0.2, 0.2),
                nodata=nodata,
                tiled=True,
                compress="deflate",
            ) as file:
                file.write(np.where(valid[sensor], values, np.array(nodata, values.dtype)))
        return paths

    return write


def prove_with_the_least(root: Path, precisions: Sequence[str]) -> tuple[str, ...]:
    """The proof of :mod:`engine.contract.proof`, with the least instruction set alone.

    With all of them it takes as long as all else that an export does; ``test_instruction_sets.py`` runs it whole.
    """
    with pytest.MonkeyPatch.context() as told:
        told.setenv(VARIABLE, next(iter(available()), ""))
        return prove(root, precisions)


def pytest_configure(config: pytest.Config) -> None:
    """A process of ``-n 2`` that dies fails the run at once: to replace it can hang for ever, and hides why it died."""
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process (``-n 2``): they share what is dear to make."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _broken_pipes_are_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Python ignores SIGPIPE. What undoes that has every test end as soon as somebody stops listening to one."""
    _ignore_broken_pipes()
    yield
    if not _ignore_broken_pipes():
        warnings.warn(f"SIGPIPE was at its default after {request.node.nodeid}", stacklevel=1)


def _ignore_broken_pipes() -> bool:
    """See that SIGPIPE is ignored; whether it was, by the kernel's word, for a library does not ask Python."""
    status = Path("/proc/self/status")
    told = status.read_text() if status.exists() else ""
    ignored = next((int(line.split()[1], 16) for line in told.splitlines() if line.startswith("SigIgn")), None)
    if ignored is None or ignored >> (signal.SIGPIPE - 1) & 1:
        return True
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return False


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Command lines set up logging for their process; here many share one."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
