"""What is measured side by side, and in which kernels it ran; how long it took is nobody's test."""

from __future__ import annotations

import pytest

from calib.latency import measure
from calib.qdq import finish
from calib.ranges import collect, threshold
from calib.rewrites import split_concatenations
from engine.contract.sensors import Scenario
from tests.calib.conftest import network, rasters, with_pairs


def test_each_graph_is_measured_and_int8_kernels_are_counted() -> None:
    tile = {name: values[None] for name, values in rasters(1).items()}
    model = split_concatenations(network(Scenario.FULL))
    names = sorted({node.input[0] for node in model.graph.node if node.op_type == "Conv"})
    limits = {name: threshold(found, "max") for name, found in collect(model, names, [tile]).items()}
    int8 = finish(with_pairs(model, dict.fromkeys(limits, 1.0)), limits)
    timing = measure(Scenario.FULL, {"fp32": network(Scenario.FULL), "int8": int8}, tile, rounds=3)
    assert [one.label for one in timing.latencies] == ["fp32 as f32", "int8 as f32", "fp32 as bf16"]
    floating, quantised, _ = timing.latencies
    assert (floating.int8_nodes, floating.nodes) == (0, 6)
    assert (quantised.int8_nodes, quantised.nodes) == (7, 7)
    assert floating.computed == "f32"
    assert all(0 < one.median_ms <= one.p90_ms for one in timing.latencies)
    assert timing.threads >= 1
    assert timing.rounds == pytest.approx(3)
