"""An ONNX graph as work: multiply-accumulates and bytes of each layer, for the outputs that are deployed.

A layer is one convolution or matrix product and everything that follows it up to the next one. That is what a library
that fuses perfectly would run in one pass, so whatever it spends beyond these layers is its own:

- activations are read once per layer and written once, in the type in which they are stored between layers: where one
  side of a ``Cast`` or ``DequantizeLinear`` is narrower, that one;
- views (reshaping, transposing, splitting, concatenating) move nothing;
- what is computed before the first product (normalisation of raw pixels) is done while the raw input is read;
- the type of a product is what :mod:`export.arithmetic` says of any parsed network: int8 only where both operands come
  from integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx.utils import Extractor

from engine.contract.errors import BundleError
from export.arithmetic import products
from export.trt_network import NetworkLayer, Tensor

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",  # one kind of arithmetic, whatever the sign of an activation
}
KINDS = {
    "Conv": "convolution",
    "ConvTranspose": "deconvolution",
    "MatMul": "matrix_multiply",
    "Gemm": "matrix_multiply",
    "DequantizeLinear": "dequantize",
    "QuantizeLinear": "quantize",
    "Reshape": "shuffle",
    "Transpose": "shuffle",
    "Flatten": "shuffle",
    "Squeeze": "squeeze",
    "Unsqueeze": "unsqueeze",
    "Identity": "identity",
}
"""Names of :mod:`export.trt_network` for what :mod:`export.arithmetic` looks at."""
VIEWS = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Split", "Slice", "Concat", "Dropout"}
)
CONVERSIONS = frozenset({"Cast", "DequantizeLinear"})
UNCOUNTED = frozenset({"Einsum", "Attention", "MultiHeadAttention", "LSTM", "GRU", "RNN", "ConvInteger"})
UNCOUNTED |= {"MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv", "If", "Loop", "Scan"}

_CONSTANT, _RAW = -2, -1
"""Levels of tensors that no product precedes: from constants alone, from an input of the graph."""


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """One product and what follows it, for one tile."""

    name: str
    op: str
    type: str
    """What the product is computed in: ``fp32``, ``fp16``, ``bf16`` or ``int8``."""
    macs: int
    weight_bytes: int
    read_bytes: int
    write_bytes: int
    nodes: frozenset[str]
    """Names of its nodes and of the tensors they make: how runtimes call what they fuse."""
    anchor: frozenset[str]
    """Those of the product alone."""

    @property
    def traffic_bytes(self) -> int:
        """Everything that must cross from and to memory."""
        return self.weight_bytes + self.read_bytes + self.write_bytes

    @property
    def flop_per_byte(self) -> float:
        """Arithmetic intensity, two operations per multiply-accumulate."""
        return 2 * self.macs / self.traffic_bytes


@dataclass(frozen=True, kw_only=True)
class GraphWork:
    """All layers of a graph for one tile."""

    layers: tuple[GraphLayer, ...]
    weight_bytes: int
    """Of distinct constants."""
    interface_bytes: int
    """Graph inputs and deployed outputs."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Read and written between layers, inputs and outputs included."""
        return sum(layer.read_bytes + layer.write_bytes for layer in self.layers)

    def mac_share(self, type_: str) -> float:
        """Share of the multiply-accumulates in a type, 0..1."""
        return sum(layer.macs for layer in self.layers if layer.type == type_) / self.macs


def read_work(path: Path, outputs: Sequence[str]) -> GraphWork:
    """Count the graph of a file; nodes that only other outputs need are not in it.

    Args:
        path: ONNX, its external weights beside it.
        outputs: names of those that are deployed.

    Raises:
        BundleError: it holds an operator whose operations cannot be counted, or a shape is not static.
    """
    return count_work(deployed(onnx.load(path), outputs))


def deployed(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph that some outputs need, for a batch of one, with every shape inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        batch.ClearField("dim_param")
        batch.dim_value = 1
    del copy.graph.value_info[:]
    part = Extractor(copy).extract_model([value.name for value in copy.graph.input], list(outputs))
    return onnx.shape_inference.infer_shapes(part, strict_mode=True, data_prop=True)


def count_work(model: onnx.ModelProto) -> GraphWork:
    """Count a graph as :func:`deployed` returns it.

    Raises:
        BundleError: as :func:`read_work`.
    """
    return _Counter(model).work()


class _Counter:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, int] = {}
        for value in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            tensor = value.type.tensor_type
            self.shapes[value.name] = tuple(axis.dim_value for axis in tensor.shape.dim)
            self.dtypes[value.name] = tensor.elem_type
        for constant in self.graph.initializer:
            self.shapes[constant.name] = tuple(constant.dims)
            self.dtypes[constant.name] = constant.data_type
        constants = {constant.name for constant in self.graph.initializer}
        self.level = dict.fromkeys(constants, _CONSTANT)
        self.level |= {value.name: _RAW for value in self.graph.input if value.name not in constants}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.members: list[list[onnx.NodeProto]] = []
        for node in self.graph.node:
            level = max((self.level[name] for name in node.input if name), default=_CONSTANT)
            if self.macs(node) and level != _CONSTANT:
                self.members.append([])
                level = len(self.members) - 1
            if level >= 0:
                self.members[level].append(node)
            self.level |= dict.fromkeys(node.output, level)

    def work(self) -> GraphWork:
        types = {product.layer.name: product.type for product in products([self.layer(n) for n in self.graph.node])}
        reads = [self._reads(index, nodes) for index, nodes in enumerate(self.members)]
        wanted = {name for read in reads for name in read} | {value.name for value in self.graph.output}
        layers = []
        for index, (nodes, read) in enumerate(zip(self.members, reads, strict=True)):
            product = nodes[0]
            weights = {name: size for name, size in read.items() if self.level[name] == _CONSTANT}
            made = [name for node in nodes for name in node.output if name in wanted and self.level[name] == index]
            layers.append(
                GraphLayer(
                    name=_name(product),
                    op=product.op_type,
                    type=types[_name(product)],
                    macs=self.macs(product),
                    weight_bytes=sum(weights.values()),
                    read_bytes=sum(read.values()) - sum(weights.values()),
                    write_bytes=sum(self.bytes(name) for name in made),
                    nodes=_names(nodes),
                    anchor=_names([product]),
                )
            )
        constants = {name: size for read in reads for name, size in read.items() if self.level[name] == _CONSTANT}
        interface = {value.name for value in self.graph.input} | {value.name for value in self.graph.output}
        return GraphWork(
            layers=tuple(layers),
            weight_bytes=sum(constants.values()),
            interface_bytes=sum(self.bytes(name) for name in interface if self.level[name] != _CONSTANT),
        )

    def macs(self, node: onnx.NodeProto) -> int:
        if node.op_type in UNCOUNTED:
            raise BundleError(
                f"node {_name(node)!r} is of type {node.op_type}, whose multiply-accumulates cannot be counted: "
                "write it as convolutions and matrix products"
            )
        if KINDS.get(node.op_type) not in ("convolution", "deconvolution", "matrix_multiply"):
            return 0
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        data, weights, made = (self.shapes[name] for name in (*node.input[:2], node.output[0]))
        match node.op_type:
            case "Conv":  # weights [C_out, C_in / groups, ...]
                count = math.prod(made) * math.prod(weights[1:])
            case "ConvTranspose":  # weights [C_in, C_out / groups, ...]
                count = math.prod(data) * math.prod(weights[1:])
            case _:
                count = math.prod(made) * data[0 if attributes.get("transA") else -1]
        if not count:
            raise BundleError(f"node {_name(node)!r} has a free axis beside the batch, {made}: export static tiles")
        return count

    def layer(self, node: onnx.NodeProto) -> NetworkLayer:
        return NetworkLayer(
            name=_name(node),
            kind=KINDS.get(node.op_type, node.op_type.lower()),
            inputs=tuple(self.tensor(name) for name in node.input if name),
            outputs=tuple(self.tensor(name) for name in node.output if name),
            macs=self.macs(node),
            weights_dtype=None,
            weights_elements=0,
        )

    def tensor(self, name: str) -> Tensor:
        dtype = self.dtypes[name]
        known = TYPES.get(dtype, TensorProto.DataType.Name(dtype).lower())
        return Tensor(name=name, dtype=known, shape=self.shapes[name])

    def bytes(self, name: str) -> int:
        return math.prod(self.shapes[name]) * self.itemsize(name)

    def itemsize(self, name: str) -> int:
        return int(helper.tensor_dtype_to_np_dtype(self.dtypes[name]).itemsize)

    def _reads(self, index: int, nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
        """Bytes that a layer reads, by the tensor they are stored in."""
        read: dict[str, int] = {}
        for node in nodes:
            if node.op_type in VIEWS:
                continue
            for name in filter(None, node.input):
                for stored, size in self._stored(name).items():
                    if self.level[stored] != index:
                        read[stored] = max(size, read.get(stored, 0))
        return read

    def _stored(self, name: str) -> dict[str, int]:
        """Where the values of a tensor lie between layers, and how many bytes of it reading them takes."""
        node, level = self.producer.get(name), self.level[name]
        if node is None:
            return {name: self.bytes(name)}
        source = node.input[0] if node.input else ""
        if node.op_type in CONVERSIONS and self.itemsize(source) <= self.itemsize(name):
            return self._stored(source)
        if level == _RAW:
            feeding = [name for name in node.input if name and self.level[name] == _RAW]
            return {stored: size for name in feeding for stored, size in self._stored(name).items()}
        if node.op_type not in VIEWS or level == _CONSTANT:
            return {name: self.bytes(name)}
        if node.op_type == "Concat":
            return {stored: size for part in node.input for stored, size in self._stored(part).items()}
        share = math.prod(self.shapes[name]) / math.prod(self.shapes[source])
        return {stored: round(size * share) for stored, size in self._stored(source).items()}


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _names(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    return frozenset(name for node in nodes for name in (_name(node), *node.output) if name)
