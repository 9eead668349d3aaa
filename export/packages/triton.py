"""A model repository of NVIDIA Triton: the three graphs, and ``gemmnet``, which picks one by the sensors it is given.

::

    OUT/full/config.pbtxt, 1/model.onnx            both sensors
    OUT/missing_ndsm/..., OUT/missing_rgir/...     one
    OUT/gemmnet/config.pbtxt, 1/model.py           rgir, ndsm or both in; the answer of the graph for them out

The configuration is ``ModelConfig`` of
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. The graphs
run in Triton's ONNX Runtime backend, ``gemmnet`` in its Python backend.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from engine.contract.bundle import Bundle, Manifest, Precision
from engine.contract.sensors import Scenario
from export.packages.graphs import whole_graph

SELECTOR = Path(__file__).with_name("triton_selector.py")
MAX_BATCH = 8
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


def write_repository(bundle: Bundle, folder: Path, precision: Precision) -> None:
    """Write the repository into an empty folder.

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    manifest = bundle.manifest
    for scenario in Scenario:
        version = folder / scenario / "1"
        version.mkdir(parents=True)
        onnx.save(whole_graph(bundle, scenario, precision), version / "model.onnx")
        inputs = [
            _tensor(spec.sensor.value, _TYPES[spec.dtype], (len(spec.bands), manifest.tile_px, manifest.tile_px))
            for spec in manifest.sensors
            if spec.sensor in scenario.sensors
        ]
        text = _config(scenario, 'platform: "onnxruntime_onnx"', inputs, _outputs(manifest), "dynamic_batching { }")
        (folder / scenario / "config.pbtxt").write_text(text)
    version = folder / "gemmnet" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SELECTOR.read_text())
    inputs = [
        _tensor(
            spec.sensor.value,
            _TYPES[spec.dtype],
            (len(spec.bands), manifest.tile_px, manifest.tile_px),
            more="optional: true",
        )
        for spec in manifest.sensors
    ]
    outputs = [*_outputs(manifest), _tensor("provenance", "TYPE_UINT8", (1,))]
    text = _config("gemmnet", 'backend: "python"', inputs, outputs, "instance_group [ { kind: KIND_CPU } ]")
    (folder / "gemmnet" / "config.pbtxt").write_text(text)


def _outputs(manifest: Manifest) -> list[str]:
    side, classes = manifest.tile_px, len(manifest.classes)
    return [
        _tensor("classes", "TYPE_UINT8", (side, side)),
        _tensor("confidence", "TYPE_UINT8", (side, side)),
        _tensor("probabilities", "TYPE_FP32", (classes, side, side)),
    ]


def _tensor(name: str, kind: str, dims: Iterable[int], more: str = "") -> str:
    told = ", ".join(map(str, dims))
    return f'  {{ name: "{name}" data_type: {kind} dims: [ {told} ] {more} }}'.replace("  }", " }")


def _config(name: str, runs_in: str, inputs: Iterable[str], outputs: Iterable[str], rest: str) -> str:
    lists = [f"{kind} [\n" + ",\n".join(each) + "\n]" for kind, each in (("input", inputs), ("output", outputs))]
    return "\n".join([f'name: "{name}"', runs_in, f"max_batch_size: {MAX_BATCH}", *lists, rest, ""])
