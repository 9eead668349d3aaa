"""What a bundle's graphs must cost on this machine, what they do cost, and which layers the difference lies in.

    python -m benchmarks.roofline                                              the demo bundle, fp32 and int8
    python -m benchmarks.roofline --precisions int8 --backends openvino --top 20
    python -m benchmarks.roofline --bundle B --rounds 7 --threads 4 --out /tmp/b.csv

Per graph, for the deployed outputs classes and confidence: multiply-accumulates, and the bytes of weights and
activations that layers read and write. A layer is one convolution or matrix product with everything up to the next
one, the unit of a library that fuses perfectly. Beside it the measured peak of this machine, with the backend's
threads: large products in fp32 and int8, copies from cache size to far beyond. Hence two floors for a tile:

floor_ms         all products at peak, or weights, inputs and outputs once over memory, whichever is longer
floor_layers_ms  the sum over layers of the longer of arithmetic and traffic (roofline model,
                 https://doi.org/10.1145/1498765.1498785), traffic at the rate of copies of its own size

``tile_ms`` is the time per tile with every slot of the backend busy (offline in MLPerf inference,
https://arxiv.org/abs/1911.02549), and the shares say how close it comes. A backend's arithmetic may be wider than its
graph: ONNX Runtime as the engine uses it computes int8 graphs in float32, and is held against the int8 floor as well.

Where the time goes is profiled apart, a tile at a time over all threads: OpenVINO by its performance counters, ONNX
Runtime by its profile. ``roofline_layers.csv`` beside the result has every executed node with the layer it belongs to;
one without a product of its own (a resize, a softmax, a reorder) is time that a perfect library would not spend.
``roofline.png`` shows the nodes with products under the roof. Rounds alternate between everything that is measured;
figures are medians over rounds, peaks the best of them.

CPU backends only: on a GPU trtexec and Nsight Compute have the counters that this command lacks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.command import at_least_one, exit_code_of, parser_of
from engine.contract.errors import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write both CSVs and the plot."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        at_least_one(options, "rounds", "tiles", "top")
        try:  # --help needs none of it
            from benchmarks.roofline.measure import measure
        except ImportError as error:
            raise UsageError(
                f"the roofline needs onnx, onnxruntime and matplotlib ({error}): "
                "pip install 'gemmnet-edge[export,train]'"
            ) from error
        measure(options)

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("roofline", __doc__, result="roofline.csv")
    parser.add_argument("--backends", default="openvino,onnxruntime", metavar="LIST", help="default: both")
    parser.add_argument("--precisions", metavar="LIST", help="default: fp32 and int8 where the bundle has it")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--tiles", type=int, default=6, metavar="N", help="tiles per round and graph (default: 6)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="slowest nodes to print per graph (default: 10)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
