"""Toy graphs in other precisions, written node by node, and a bundle that holds them: what engine tests build."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.sensors import Scenario

requires_rtx = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="TensorRT-RTX has no package for this platform"
)
"""Elsewhere a missing package is an error: the ``test`` extra brings it."""


def quantised(path: Path, operands: Collection[str] = ("input", "weights")) -> onnx.ModelProto:
    """The graph with explicit quantisation around its convolutions, symmetric, weights per output channel."""
    model = onnx.load(path)
    graph = model.graph
    kernels = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Conv":
            source, weights = node.input[:2]
            if "input" in operands:
                nodes += _quantise(graph, source, np.float32(1 / 64), f"{node.output[0]}_input")
                node.input[0] = f"{node.output[0]}_input"
            if "weights" in operands:
                scales = (np.abs(kernels[weights]).max(axis=(1, 2, 3)) / 127).astype(np.float32)
                levels = np.rint(kernels[weights] / scales[:, None, None, None]).astype(np.int8)
                graph.initializer.append(numpy_helper.from_array(levels, f"{weights}_int8"))
                graph.initializer.append(numpy_helper.from_array(scales, f"{weights}_scale"))
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear", [f"{weights}_int8", f"{weights}_scale"], [f"{weights}_dq"], axis=0
                    )
                )
                node.input[1] = f"{weights}_dq"
                del kernels[weights]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    rebuilt = helper.make_graph(nodes, graph.name, list(graph.input), list(graph.output), initializers)
    return _checked(rebuilt)


def halved(path: Path) -> onnx.ModelProto:
    """The graph with its convolutions in fp16, between casts."""
    model = onnx.load(path)
    graph = model.graph
    nodes = []
    weights = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    for tensor in graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in graph.node:
        if node.op_type != "Conv":
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{source}_half", f"{result}_half"
        nodes.append(helper.make_node("Cast", [source], [f"{source}_half"], to=TensorProto.FLOAT16))
        nodes.append(node)
        nodes.append(helper.make_node("Cast", [f"{result}_half"], [result], to=TensorProto.FLOAT))
    return _checked(
        helper.make_graph(nodes, graph.name, list(graph.input), list(graph.output), list(graph.initializer))
    )


def with_engines(bundle: Bundle, root: Path) -> Bundle:
    """A copy of a toy bundle with fp16 and int8 graphs for every scenario."""
    shutil.copytree(bundle.root, root)
    graphs = {}
    for scenario in Scenario:
        exact = bundle.graph(scenario, "fp32")
        graphs[scenario] = dict(bundle.manifest.graphs[scenario])
        for precision, model in (("fp16", halved(exact)), ("int8", quantised(exact))):
            onnx.save(model, root / f"{scenario}.{precision}.onnx")
            graphs[scenario][precision] = FileRef.of(root / f"{scenario}.{precision}.onnx", root)
    save_manifest(replace(bundle.manifest, graphs=graphs), root)
    return Bundle.load(root)


def replace_graph(bundle: Bundle, scenario: Scenario, precision: str, content: bytes) -> Bundle:
    """Another file in a graph's place, with a manifest that says so."""
    path = bundle.root / f"{scenario}.{precision}.other.onnx"
    path.write_bytes(content)
    mine = {**bundle.manifest.graphs[scenario], precision: FileRef.of(path, bundle.root)}
    save_manifest(replace(bundle.manifest, graphs={**bundle.manifest.graphs, scenario: mine}), bundle.root)
    return Bundle.load(bundle.root)


def _quantise(graph: onnx.GraphProto, source: str, scale: np.float32, result: str) -> list[onnx.NodeProto]:
    graph.initializer.append(numpy_helper.from_array(scale, f"{result}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), f"{result}_zero"))
    constants = [f"{result}_scale", f"{result}_zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *constants], [f"{result}_int8"]),
        helper.make_node("DequantizeLinear", [f"{result}_int8", *constants], [result]),
    ]


def _checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model
