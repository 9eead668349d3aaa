"""Work is counted as written, floors follow from it and from the peaks, and every product is found in each profile."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.roofline import __main__ as roofline
from benchmarks.roofline import measure
from benchmarks.roofline.graph import count_work, deployed, read_work
from benchmarks.roofline.machine import Machine, Peaks
from benchmarks.roofline.profiling import OnnxRuntimeProfile, OpenVinoProfile, rows_of
from engine import demo
from engine.contract.bundle import Bundle
from engine.contract.errors import BundleError
from engine.contract.sensors import Scenario
from export.scenarios import inputs_of
from tests.engine.precision_graphs import with_precisions
from train.config import PRESETS
from train.model import count_macs
from train.predict import predictor
from train.systems import build

OUTPUTS = ("classes", "confidence")
SMALL = partial(Machine, matrix_side=64, map_side=8, copy_mib=(0.25, 1))


def quantised_pair() -> onnx.ModelProto:
    """Byte pixels, an int8 convolution, and a float one over its resized answer beside the answer itself."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["float", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w1", "step", "zero"], ["w1_float"]),
        helper.make_node("Conv", ["dq", "w1_float"], ["first"], name="one", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["first"], ["relu"]),
        helper.make_node("QuantizeLinear", ["relu", "step", "zero"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "step", "zero"], ["dq2"]),
        helper.make_node("Concat", ["relu", "dq2"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "w2"], ["second"], name="two"),
        helper.make_node("Sigmoid", ["second"], ["answer"]),
        helper.make_node("Conv", ["second", "w3"], ["unwanted"], name="three"),
    ]
    arrays = {
        "w1": np.zeros((8, 3, 3, 3), np.int8),
        "w2": np.zeros((4, 16, 1, 1), np.float32),
        "w3": np.zeros((4, 4, 1, 1), np.float32),
        "step": np.float32(1),
        "zero": np.int8(0),
    }
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["n", 4, 8, 8])
    unwanted = helper.make_tensor_value_info("unwanted", TensorProto.FLOAT, ["n", 4, 8, 8])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 3, 16, 16])
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "pair", [pixels], [answer, unwanted], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_work_is_that_of_the_wanted_output_in_the_types_it_is_stored_in() -> None:
    work = count_work(deployed(quantised_pair(), ["answer"]))
    one, two = work.layers
    assert (one.name, one.type, one.macs) == ("one", "int8", 8 * 8 * 8 * 3 * 9)
    assert (one.weight_bytes, one.read_bytes) == (8 * 3 * 9 + 4 + 1, 3 * 16 * 16), "step and zero point included"
    assert one.write_bytes == (4 + 1) * 8 * 8 * 8, "in float32 for one reader and in int8 for the other"
    assert (two.name, two.type, two.macs) == ("two", "fp32", 8 * 8 * 4 * 16)
    assert (two.weight_bytes, two.read_bytes, two.write_bytes) == (4 * 16 * 4, (4 + 1) * 8 * 8 * 8, 4 * 8 * 8 * 4)
    assert work.weight_bytes == one.weight_bytes + two.weight_bytes
    assert work.interface_bytes == 3 * 16 * 16 + 4 * 8 * 8 * 4
    assert work.mac_share("int8") == pytest.approx(one.macs / (one.macs + two.macs))


def test_an_operator_that_cannot_be_counted_is_refused() -> None:
    model = quantised_pair()
    model.graph.node[-2].CopyFrom(
        helper.make_node("Einsum", ["second", "second"], ["answer"], equation="nchw,nchw->nchw", name="sum")
    )
    with pytest.raises(BundleError, match="'sum' is of type Einsum"):
        count_work(deployed(model, ["answer"]))


@pytest.mark.parametrize("scenario", Scenario)
def test_the_demo_graphs_have_the_products_of_their_network(scenario) -> None:
    bundle = Bundle.load(demo.BUNDLE)
    assert bundle.manifest.training.command.startswith("python -m train.run ")
    model = build(PRESETS["edge"].model).eval()
    side = bundle.manifest.tile_px
    rgir, ndsm = torch.zeros(1, 3, side, side), torch.zeros(1, 1, side, side)
    macs = count_macs(model, lambda: predictor(model, scenario)(rgir, ndsm))
    raw = {"rgir": 3, "ndsm": 4}  # bytes per pixel
    for precision in ("fp32", "int8"):
        work = read_work(bundle.graph(scenario, precision), OUTPUTS)
        # In int8 the 5x5 smoothing multiplies inside blocks of 4 x 4 px, 9 blocks for each, mostly by zeros.
        zeros = 512**2 * 6 * (9 * 4**2 - 5**2) if precision == "int8" else 0
        assert work.macs == macs + zeros, precision
        assert work.interface_bytes == side**2 * (2 + sum(raw[sensor] for sensor in inputs_of(scenario)))


def test_a_floor_is_the_longer_of_arithmetic_and_traffic_layer_by_layer() -> None:
    work = count_work(deployed(quantised_pair(), ["answer"]))
    one, two = work.layers
    kib = 1024
    peaks = Peaks(gflops={"fp32": 1e-3, "int8": 1.0}, copy_gbs={kib: 1e-2, 64 * kib: 1e-3}, threads=1)
    assert peaks.compute_ms(one) == pytest.approx(2 * one.macs / 1e6)
    assert peaks.compute_ms(two) == pytest.approx(2 * two.macs / 1e3)
    assert peaks.memory_ms(one) == pytest.approx(one.traffic_bytes / 1e4)
    longer = max(2 * one.macs / 1e6, one.traffic_bytes / 1e4) + max(2 * two.macs / 1e3, two.traffic_bytes / 1e4)
    assert peaks.layers_floor_ms(work) == pytest.approx(longer)
    assert peaks.floor_ms(work) == pytest.approx(2 * one.macs / 1e6 + 2 * two.macs / 1e3)
    no_int8 = Peaks(gflops={"fp32": 1e-3}, copy_gbs={kib: 1.0}, threads=1)
    assert no_int8.compute_ms(one) == pytest.approx(2 * one.macs / 1e3)


def test_peaks_are_measured_with_the_threads_asked_for_and_a_missing_one_has_a_reason() -> None:
    machine = SMALL(threads=1)
    machine.measure()
    machine.measure()
    peaks = machine.peaks()
    assert peaks.threads == 1
    assert set(peaks.copy_gbs) == {2**18, 2**20}
    assert all(rate > 0 for rate in (*peaks.gflops.values(), *peaks.copy_gbs.values()))
    assert "fp32" in peaks.gflops
    for kind in {"int8", "16-bit"} - set(peaks.gflops):
        assert any(remark.startswith(kind) for remark in peaks.remarks)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_each_product_of_the_demo_is_found_once_in_either_profile(precision) -> None:
    bundle = Bundle.load(demo.BUNDLE)
    path = bundle.graph(Scenario.FULL, precision)
    work = read_work(path, OUTPUTS)
    with np.load(bundle.golden_path) as golden:
        feed = {name: golden[name][None] for name in ("rgir", "ndsm")}
    profiles = [
        OpenVinoProfile(onnx.load(path), OUTPUTS, precision, None),
        OnnxRuntimeProfile(path, OUTPUTS, None),
    ]
    for profile in profiles:
        profile.run(feed, 1)
        rows = rows_of(profile.nodes(), work)
        owned = [layer.name for row in rows for layer in row.owns]
        assert sorted(owned) == sorted(layer.name for layer in work.layers)
        slowest = [row.node.ms for row in rows]
        assert slowest == sorted(slowest, reverse=True)
        assert slowest[0] > 0


@pytest.mark.slow
def test_the_command_writes_a_row_per_graph_its_nodes_and_a_picture(toy_bundle, tmp_path, monkeypatch, capsys) -> None:
    bundle = with_precisions(toy_bundle, tmp_path / "bundle")
    monkeypatch.setattr(measure, "Machine", SMALL)
    out = tmp_path / "roofline.csv"
    options = ["--rounds", "2", "--tiles", "2", "--threads", "1", "--top", "3"]
    assert roofline.main(["--bundle", str(bundle.root), "--out", str(out), *options]) == 0
    rows = list(csv.DictReader(out.open()))
    assert {(row["backend"], row["precision"], row["scenario"]) for row in rows} == {
        (backend, precision, scenario.value)
        for backend in ("openvino", "onnxruntime")
        for precision in ("fp32", "int8")
        for scenario in Scenario
    }
    lines = list(csv.DictReader((tmp_path / "roofline_layers.csv").open()))
    bands = {"full": 4, "missing_ndsm": 3, "missing_rgir": 1}
    for row in rows:
        macs = 64 * 64 * 4 * bands[row["scenario"]]
        assert float(row["gmac"]) == pytest.approx(macs / 1e9, abs=1e-4)
        assert float(row["int8_mac_share"]) == (row["precision"] == "int8")
        mine = [line for line in lines if all(line[k] == row[k] for k in ("backend", "precision", "scenario"))]
        assert sum(float(line["mmac"]) for line in mine) == pytest.approx(macs / 1e6, abs=2e-3)
        assert sum(float(line["share"]) for line in mine) == pytest.approx(1, abs=1e-3)
        assert float(row["tile_ms"]) > 0
        assert row["threads"] == "1"
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert Path(tmp_path / "roofline.png").stat().st_size > 10_000
    assert "ms a tile, floor" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--rounds", "--tiles", "--top"])
def test_less_than_one_is_refused(toy_bundle, option, capsys) -> None:
    assert roofline.main(["--bundle", str(toy_bundle.root), option, "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
