"""The toy graphs once more in 16 bits and with explicit 8-bit quantisation, and what the latter means in numpy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.sensors import Scenario, Sensor
from tests.conftest import UNIT, kernels

STEP = {Sensor.RGIR: 1 / 255, Sensor.NDSM: 3 / 127}
"""Of the quantised activations: exact for 8-bit pixels, 0.24 m for heights up to 30 m."""


def steps_of(weights: np.ndarray) -> np.ndarray:
    """Symmetric int8, one step per output channel.

    Only 63 of 127 steps are used: a processor without VNNI adds two products of 8 bits in 16, and 2 x 255 x 64 is more
    than they hold (https://docs.openvino.ai/latest/pot_saturation_issue.html).
    """
    return np.abs(weights).max(axis=(1, 2, 3)) / 63


def write_fp16(graph: onnx.ModelProto) -> None:
    """Convolutions in 16 bits, everything else as it was."""
    nodes = []
    for node in graph.graph.node:
        if node.op_type == "Conv":
            values, weights = node.input
            nodes.append(helper.make_node("Cast", [values], [f"{values}_half"], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [weights], [f"{weights}_half"], to=TensorProto.FLOAT16))
            half = helper.make_node("Conv", [f"{values}_half", f"{weights}_half"], [f"{node.output[0]}_half"])
            nodes.append(half)
            nodes.append(helper.make_node("Cast", [half.output[0]], [node.output[0]], to=TensorProto.FLOAT))
        else:
            nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def write_int8(graph: onnx.ModelProto) -> None:
    """Explicit quantisation: QuantizeLinear and DequantizeLinear before each convolution and behind its weights."""
    nodes, initializers = [], {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            values, name = node.input
            sensor = Sensor(name.removesuffix("_weights"))
            weights = numpy_helper.to_array(initializers[name])
            kind = np.uint8 if sensor is Sensor.RGIR else np.int8
            steps = steps_of(weights)
            quantised = np.rint(weights / steps[:, None, None, None]).astype(np.int8)
            graph.graph.initializer.extend(
                numpy_helper.from_array(array, f"{sensor}_{what}")
                for what, array in {
                    "step": np.float32(STEP[sensor]),
                    "zero": kind(0),
                    "weights_int8": quantised,
                    "weights_steps": steps.astype(np.float32),
                    "weights_zeros": np.zeros(len(steps), np.int8),
                }.items()
            )
            scale = [f"{sensor}_step", f"{sensor}_zero"]
            nodes += [
                helper.make_node("QuantizeLinear", [values, *scale], [f"{values}_q"]),
                helper.make_node("DequantizeLinear", [f"{values}_q", *scale], [f"{values}_dq"]),
                helper.make_node(
                    "DequantizeLinear",
                    [f"{sensor}_weights_int8", f"{sensor}_weights_steps", f"{sensor}_weights_zeros"],
                    [f"{name}_dq"],
                    axis=0,
                ),
                helper.make_node("Conv", [f"{values}_dq", f"{name}_dq"], node.output),
            ]
        else:
            nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def quantised_probabilities(scenario: Scenario, inputs: dict[Sensor, np.ndarray]) -> np.ndarray:
    """What the int8 graph means, in numpy."""
    logits = np.float64(0)
    for sensor, weights in kernels(scenario, 0).items():
        steps = steps_of(weights)[:, None]
        low, high = (0, 255) if sensor is Sensor.RGIR else (-128, 127)
        values = np.clip(np.rint(inputs[sensor] * np.float32(UNIT[sensor]) / np.float32(STEP[sensor])), low, high)
        rounded = np.rint(weights[:, :, 0, 0] / steps) * steps
        logits = logits + np.einsum("cb,bhw->chw", rounded, values * STEP[sensor])
    exponent = np.exp(logits - logits.max(axis=0))
    return exponent / exponent.sum(axis=0)


def with_precisions(bundle: Bundle, root: Path) -> Bundle:
    """A copy of the toy bundle that has fp16 and int8 graphs as well."""
    shutil.copytree(bundle.root, root)
    graphs = {scenario: dict(refs) for scenario, refs in bundle.manifest.graphs.items()}
    for scenario in Scenario:
        for precision, write in {"fp16": write_fp16, "int8": write_int8}.items():
            graph = onnx.load(root / f"{scenario}.onnx")
            write(graph)
            onnx.checker.check_model(graph, full_check=True)
            onnx.save(graph, root / f"{scenario}.{precision}.onnx")
            graphs[scenario][precision] = FileRef.of(root / f"{scenario}.{precision}.onnx", root)
    save_manifest(replace(bundle.manifest, graphs=graphs), root)
    return Bundle.load(root)
