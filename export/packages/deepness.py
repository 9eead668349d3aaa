"""Models for Deepness, the plugin of QGIS: one input, one output, and metadata that fills its dialogue.

Deepness reads the bands of one raster layer, divides whatever they hold by 255 and feeds float32 [N, bands, T, T]
(``preprocessing_utils.py`` of https://github.com/PUTvision/qgis-plugin-deepness). The graphs multiply by 255 again, so
that layers are as elsewhere here: ``missing_ndsm`` takes near-infrared, red, green of 0 to 255, ``missing_rgir``
heights in metres, ``full`` a raster of four bands, heights last.

Its documentation calls the side of a tile ``tiles_size``, its code reads ``tile_size``: both are written.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.contract.bundle import Bundle, Manifest, Precision
from engine.contract.sensors import Scenario, Sensor
from export.packages.graphs import whole_graph

INPUT, OUTPUT = "layer", "probabilities"


def write_models(bundle: Bundle, folder: Path, precision: Precision) -> None:
    """Write ``full.onnx``, ``missing_ndsm.onnx`` and ``missing_rgir.onnx``.

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    for scenario in Scenario:
        model = one_input(whole_graph(bundle, scenario, precision), bundle.manifest, scenario)
        helper.set_model_props(model, metadata(bundle.manifest, scenario))
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{scenario}.onnx")


def metadata(manifest: Manifest, scenario: Scenario) -> dict[str, str]:
    """What Deepness reads, each value as JSON."""
    bands = sum(len(spec.bands) for spec in manifest.sensors if spec.sensor in scenario.sensors)
    finest, coarsest = manifest.best_gsd_m or manifest.gsd_m
    told = {
        "model_type": "Segmentor",
        "class_names": {str(index): spec.name for index, spec in enumerate(manifest.classes)},
        "resolution": round(100 * math.sqrt(finest * coarsest)),  # centimetres a pixel
        "tile_size": manifest.tile_px,
        "tiles_size": manifest.tile_px,
        "tiles_overlap": math.ceil(200 * manifest.halo_px / manifest.tile_px),  # percent
        "seg_thresh": 0.0,  # the most probable class, however improbable
        "seg_small_segment": 0,
        "standardization_mean": [0.0] * bands,
        "standardization_std": [1.0] * bands,
    }
    return {name: json.dumps(value) for name, value in told.items()}


def one_input(model: onnx.ModelProto, manifest: Manifest, scenario: Scenario) -> onnx.ModelProto:
    """The graph fed by float32 [N, bands, T, T] of values / 255, answering probabilities alone."""
    graph, side = model.graph, manifest.tile_px
    before: list[onnx.NodeProto] = []
    initializers = {"layer_255": np.float32(255), "layer_0": np.float32(0), "layer_axis": np.array([1])}
    before += [
        helper.make_node("Mul", [INPUT, "layer_255"], ["layer_scaled"]),
        helper.make_node("IsNaN", ["layer_scaled"], ["layer_holes"]),
        helper.make_node("Where", ["layer_holes", "layer_0", "layer_scaled"], ["layer_raw"]),
    ]
    first = 0
    for spec in manifest.sensors:
        if spec.sensor not in scenario.sensors:
            continue
        stop, name = first + len(spec.bands), spec.sensor.value
        initializers |= {f"layer_{name}_first": np.array([first]), f"layer_{name}_stop": np.array([stop])}
        part = f"layer_{name}" if spec.sensor is Sensor.RGIR else name
        bounds = [f"layer_{name}_first", f"layer_{name}_stop", "layer_axis"]
        before.append(helper.make_node("Slice", ["layer_raw", *bounds], [part]))
        if spec.sensor is Sensor.RGIR:
            before += [
                helper.make_node("Round", [part], [f"{part}_rounded"]),
                helper.make_node("Clip", [f"{part}_rounded", "layer_0", "layer_255"], [f"{part}_clipped"]),
                helper.make_node("Cast", [f"{part}_clipped"], [name], to=TensorProto.UINT8),
            ]
        first = stop
    nodes = [*before, *graph.node]
    needed, kept = {OUTPUT}, list[onnx.NodeProto]()
    for node in reversed(nodes):  # they stand in topological order
        if needed & set(node.output):
            needed |= {name for name in node.input if name}
            kept.append(node)
    graph.ClearField("node")
    graph.node.extend(reversed(kept))
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items())
    for values, value in (
        (graph.input, helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", first, side, side])),
        (
            graph.output,
            helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(manifest.classes), side, side]),
        ),
    ):
        del values[:]
        values.append(value)
    return model
