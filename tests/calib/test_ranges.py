"""Activation ranges against numpy and against ONNX Runtime's own calibrators."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector

from calib.ranges import BINS, METHODS, PERCENTILE, Magnitudes, collect, threshold
from engine.contract.sensors import Scenario
from tests.calib.conftest import network, rasters, run


def batches(count: int = 3) -> list[dict]:
    return [{name: values[None] for name, values in rasters(seed).items()} for seed in range(count)]


def merged(arrays: list[np.ndarray]) -> Magnitudes:
    found = Magnitudes.of(arrays[0])
    for array in arrays[1:]:
        found = found + Magnitudes.of(array)
    return found


@pytest.fixture
def arrays() -> list[np.ndarray]:
    """Three tiles of very different ranges, one of them first small and then large."""
    rng = np.random.default_rng(3)
    return [rng.normal(0, scale, 20_000).astype(np.float32) for scale in (0.01, 3.0, 0.5)]


def test_adding_histograms_is_the_histogram_of_all_values(arrays: list[np.ndarray]) -> None:
    found, values = merged(arrays), np.abs(np.concatenate(arrays))
    expected, _ = np.histogram(values, bins=BINS, range=(0, found.limit))
    assert found.largest == values.max()
    np.testing.assert_array_equal(found.counts, expected)


def test_max_is_the_largest_magnitude(arrays: list[np.ndarray]) -> None:
    assert threshold(merged(arrays), "max") == np.abs(np.concatenate(arrays)).max()


def test_percentile_is_numpys_to_a_bin(arrays: list[np.ndarray]) -> None:
    found = merged(arrays)
    expected = np.percentile(np.abs(np.concatenate(arrays)), PERCENTILE)
    assert threshold(found, "percentile") == pytest.approx(expected, abs=2 * found.limit / BINS)


@pytest.mark.parametrize("outlier", [8.0, 60.0])
def test_entropy_clips_outliers_where_onnxruntime_does(outlier: float) -> None:
    values = np.random.default_rng(1).normal(0, 1, 200_000).astype(np.float32)
    values[:3] = outlier
    reference = HistogramCollector(
        method="entropy", symmetric=True, num_bins=2001, num_quantized_bins=128, percentile=99.99, scenario="same"
    )
    reference.collect({"x": [values]})
    expected = abs(reference.compute_collection_result()["x"][0])
    found = threshold(Magnitudes.of(values), "entropy")
    # Both curves are flat around their minimum, and their bins differ.
    assert found == pytest.approx(float(expected), rel=0.35)
    assert found < 0.7 * outlier


def test_entropy_keeps_everything_of_a_flat_distribution() -> None:
    values = np.random.default_rng(1).uniform(-2, 2, 100_000).astype(np.float32)
    assert threshold(Magnitudes.of(values), "entropy") > 1.9


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_gets_a_positive_threshold(method: str) -> None:
    assert threshold(Magnitudes.of(np.zeros(10, np.float16)), method) > 0


@pytest.mark.parametrize("method", METHODS)
def test_no_method_clips_above_the_largest_value(method: str, arrays: list[np.ndarray]) -> None:
    found = merged(arrays)
    assert 0 < threshold(found, method) <= found.largest


def test_collect_sees_inner_tensors_of_every_tile() -> None:
    model = network(Scenario.FULL)
    names = ("rgir.scaled", "ndsm.features", "fused")
    found = collect(model, names, batches())
    for name in names:
        values = np.concatenate([run_inner(model, batch, name).ravel() for batch in batches()])
        assert found[name].largest == np.abs(values).max()
        assert sum(found[name].counts) == values.size


def test_collecting_without_a_tile_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one tile"):
        collect(network(Scenario.FULL), ("fused",), [])


def run_inner(model, batch, name):
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(watched, batch, name)[0]
