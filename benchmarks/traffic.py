"""What engines hand from kernel to kernel through memory, and in which form an int8 graph would do so least.

    python -m benchmarks.traffic                            the demo bundle, TensorRT-RTX's own list of layers; no GPU
    python -m benchmarks.traffic --bundle B --out B.csv

A small network's time on a GPU goes into memory. A quantised convolution is a gain there where its kernel writes int8;
where it writes floating point another kernel has to read that, quantise it and write it again. Per scenario, with the
outputs that a cropped map needs and with all:

- fp16: the fp16 graph;
- int8: the bundle's int8 graph, written for processors (concatenations split, pixels shuffled last);
- int8 whole: the fp16 graph with pairs on every convolution that Model Optimizer takes, weights scaled per channel;
- int8 whole, one scale: the same with one scale for each layer's weights, so that bias and ReLU fold in.

The last two are never run: their ranges are those of one tile, and nobody measured what they cost in accuracy.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from tqdm import tqdm

from benchmarks.command import exit_code_of, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.tables import TABLES
from calib.qdq import exported
from calib.quantize import place
from engine.contract.bundle import Bundle
from engine.contract.plans import EngineAudit, PlanKey, source_sha256
from engine.contract.sensors import Scenario
from export.arithmetic import products
from export.built_layers import audit_engine
from export.engine_options import DEFAULT_BATCH, batch_of, target_of
from export.progress import PhaseBar, Stop
from export.trt_library import TrtLibrary, open_library

LEVELS = 127


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, print, write the CSV."""
    options = parser_of("traffic", __doc__, result="traffic.csv").parse_args(arguments)

    def work() -> None:
        library, bundle = open_library("tensorrt_rtx"), Bundle.load(options.bundle)
        with tempfile.TemporaryDirectory() as folder:
            rows = [
                row_of(scenario, name, probabilities, built(library, bundle, scenario, graph, probabilities))
                for scenario, name, graph, outputs in tqdm(
                    graphs(bundle, Path(folder)), total=4 * len(Scenario), unit="graph", leave=False
                )
                for probabilities in outputs
            ]
        print(TABLES["traffic"].markdown(rows))
        write_csv(options.out, [{**row, **conditions("tensorrt_rtx")} for row in rows])
        print(f"written: {options.out}")

    return exit_code_of(work)


def graphs(bundle: Bundle, folder: Path) -> Iterator[tuple[Scenario, str, Path, tuple[bool, ...]]]:
    """Scenario, name, file, and whether to build it with probabilities; the bundle's own in both ways."""
    golden = bundle.golden()
    for scenario in Scenario:
        exact = bundle.graph(scenario, "fp16")
        yield scenario, "fp16", exact, (True, False)
        yield scenario, "int8", bundle.graph(scenario, "int8"), (True, False)
        whole = place(onnx.load(exact), {sensor.value: golden[sensor.value][None] for sensor in scenario.sensors})
        for name, model in (("int8 whole", whole), ("int8 whole, one scale", one_scale(whole))):
            path = folder / f"{scenario}.{name.replace(', ', '_').replace(' ', '_')}.onnx"
            onnx.save(model, path)
            yield scenario, name, path, (False,)


def one_scale(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with one scale for each layer's weights, which are stored as int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = gs.import_onnx(copy)
    for node in graph.nodes:
        if node.op != "DequantizeLinear" or not node.inputs[0].inputs:
            continue
        (quantize,) = node.inputs[0].inputs
        weight, scale = quantize.inputs[:2]
        if not isinstance(weight, gs.Constant):
            continue
        values = weight.values.astype(np.float32)
        step = np.asarray(np.abs(values).max() / LEVELS, scale.values.dtype)
        levels = np.clip(np.rint(values / np.float32(step)), -LEVELS, LEVELS).astype(np.int8)
        node.inputs = [gs.Constant(f"{weight.name}.int8", levels), gs.Constant(f"{weight.name}.step", step)]
        node.attrs.clear()
        quantize.outputs.clear()
    return exported(graph, model)


def built(library: TrtLibrary, bundle: Bundle, scenario: Scenario, graph: Path, probabilities: bool) -> EngineAudit:
    """What the library makes of a graph, for the compute capabilities that it builds for by itself."""
    key = PlanKey(
        scenario=scenario,
        precision="int8",
        source_sha256=source_sha256(bundle, scenario, "int8"),
        library=library.name,
        library_version=library.version,
        target=target_of(None, library),
        batch=batch_of(DEFAULT_BATCH),
        probabilities=probabilities,
    )
    network = library.parse(graph, probabilities=probabilities)
    asked = products(tuple(network.layers()))
    with PhaseBar(f"{scenario}", Stop()) as bar:
        made = library.build(network, key, progress=bar)
    return audit_engine(made.layers, asked, "int8")


def row_of(scenario: Scenario, graph: str, probabilities: bool, engine: EngineAudit) -> dict[str, object]:
    """One line of the CSV."""
    megabytes = {f"written_{name}_mb": round(engine.written.get(name, 0) / 1e6, 2) for name in ("fp32", "fp16", "int8")}
    return {
        "scenario": scenario.value,
        "graph": graph,
        "outputs": "all" if probabilities else "classes, confidence",
        "kernels": engine.kernels,
        "written_mb": round(engine.bytes_written / 1e6, 2),
        **megabytes,
        "int8_macs": round(engine.mac_share.get("int8", 0.0), 4),
        "widened": engine.widened,
    }


if __name__ == "__main__":
    sys.exit(main())
