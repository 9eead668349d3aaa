"""What GPU tests need: a device and pycuda, and most of them plans that the build command made on this machine.

Without them the tests are skipped, and the reason says which is missing. With GEMMNET_REQUIRE_GPU=1, which
tests/gpu/run.sh sets, a missing one is a failure instead.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.tiles import Tile, tiles_of
from engine import demo
from engine.backends.base import Backend, Output
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendUnavailableError
from engine.contract.sensors import Scenario
from export import build
from export.cuda_device import current_device

WANTED = (Output.CLASSES, Output.CONFIDENCE, Output.PROBABILITIES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the device."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def missing_device() -> str | None:
    """What this machine lacks of a device that Python can use, in words; None when it lacks nothing."""
    try:
        current_device()
    except BackendUnavailableError as error:
        return str(error)
    try:
        importlib.import_module("pycuda.driver")
    except ImportError as error:
        return f"pycuda cannot be imported ({error})"
    return None


def missing_library() -> str | None:
    """Why no TensorRT library can be used; None where one can."""
    refused = []
    for library in ("tensorrt", "tensorrt_rtx"):
        try:
            importlib.import_module(library)
            return None
        except (ImportError, OSError) as error:
            refused.append(str(error))
    return f"no TensorRT library can be imported ({'; '.join(refused)})"


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Skip, or fail where a GPU is demanded."""
    _demand(missing_device())


@pytest.fixture(scope="session")
def tensorrt_library(device) -> None:
    """Likewise for a TensorRT library."""
    _demand(missing_library())


def _demand(lacking: str | None) -> None:
    if lacking is not None and os.environ.get("GEMMNET_REQUIRE_GPU") == "1":
        pytest.fail(f"GEMMNET_REQUIRE_GPU=1, but {lacking}")
    if lacking is not None:
        pytest.skip(lacking)


@dataclass(frozen=True, kw_only=True)
class Built:
    """The demo bundle and its plans for this device."""

    bundle: Bundle
    plans: Path
    precisions: tuple[Precision, ...]


@pytest.fixture(scope="session")
def built(tensorrt_library, tmp_path_factory) -> Built:
    """Plans of every graph of the demo bundle; GEMMNET_PLANS names a folder that keeps them between runs."""
    bundle = Bundle.load(demo.BUNDLE)
    plans = Path(os.environ.get("GEMMNET_PLANS") or tmp_path_factory.mktemp("plans"))
    assert build.main(["--bundle", str(bundle.root), "--cache", str(plans)]) == 0
    precisions = tuple(
        precision
        for precision in get_args(Precision)
        if all(precision in bundle.manifest.graphs[scenario] for scenario in Scenario)
    )
    return Built(bundle=bundle, plans=plans, precisions=precisions)


@pytest.fixture(scope="session")
def tiles(built) -> list[Tile]:
    """The golden tile and windows of the demo scene."""
    return tiles_of(built.bundle, demo.SCENE, 3)


Answers = Mapping[Scenario, list[Mapping[Output, NDArray[np.generic]]]]


@pytest.fixture(scope="session")
def reference(built, tiles) -> Mapping[Precision, Answers]:
    """What ONNX Runtime on the CPU answers, by precision."""
    answers = {}
    for precision in built.precisions:
        with BackendOptions(name="onnxruntime", precision=precision).open(
            built.bundle, scenarios=Scenario, wanted=WANTED
        ) as backend:
            answers[precision] = {scenario: [infer(backend, scenario, tile) for tile in tiles] for scenario in Scenario}
    return answers


@pytest.fixture
def tensorrt(built) -> Iterator[Backend]:
    """The backend as the runtime opens it."""
    with BackendOptions(name="tensorrt", plans=built.plans).open(
        built.bundle, scenarios=Scenario, wanted=WANTED
    ) as backend:
        yield backend


def infer(backend: Backend, scenario: Scenario, tile: Tile) -> Mapping[Output, NDArray[np.generic]]:
    return backend.infer(scenario, {sensor: tile[sensor] for sensor in scenario.sensors})
