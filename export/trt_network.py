"""A parsed TensorRT network as plain values: what each layer computes, in which type, with how many operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.contract.errors import BundleError

TYPE_NAMES = {"FLOAT": "fp32", "HALF": "fp16"}
"""Of ``DataType``; every other one is its own name in lower case."""
UNCOUNTED = frozenset({"EINSUM", "ATTENTION_INPUT", "MOE", "RECURRENCE", "PLUGIN", "PLUGIN_V2", "PLUGIN_V3"})
"""Layers that may multiply matrices but do not say how many times."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An edge of the network."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class NetworkLayer:
    """A node of the network, for one tile."""

    name: str
    kind: str
    """``LayerType`` in lower case, such as ``convolution``, ``matrix_multiply``, ``quantize``."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    macs: int
    """Multiply-accumulates; 0 for everything but convolutions and matrix products."""
    weights_dtype: str | None
    """Type of the constants the layer itself holds."""
    weights_elements: int


def read_layers(trt: Any, network: Any) -> Iterator[NetworkLayer]:
    """Every layer of an ``INetworkDefinition`` in execution order, shapes for a batch of one.

    Args:
        trt: the library's module.
        network: parsed; its inputs' first axis is the free batch, and is free again afterwards.

    Raises:
        BundleError: a layer's operations cannot be counted.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tuple(tensor.shape) for tensor in inputs]
    try:
        for tensor, shape in zip(inputs, free, strict=True):
            tensor.shape = (1, *shape[1:])
        for index in range(network.num_layers):
            yield _layer(trt, network.get_layer(index))
    finally:
        for tensor, shape in zip(inputs, free, strict=True):
            tensor.shape = shape


def _layer(trt: Any, layer: Any) -> NetworkLayer:
    kind = layer.type.name
    if kind in UNCOUNTED:
        raise BundleError(
            f"layer {layer.name!r} is of type {kind}, whose multiply-accumulates cannot be counted: "
            "write it as convolutions and matrix products"
        )
    inputs = tuple(_tensor(found) for index in range(layer.num_inputs) if (found := layer.get_input(index)) is not None)
    outputs = tuple(_tensor(layer.get_output(index)) for index in range(layer.num_outputs))
    macs, constants = 0, []
    # The bindings hand out every layer as its base class; assigning the class is how they let one see the rest.
    if kind == "CONVOLUTION":
        layer.__class__ = trt.IConvolutionLayer
        macs = _volume(outputs[0]) * math.prod(layer.kernel_size_nd) * inputs[0].shape[1] // layer.num_groups
        constants = [layer.kernel, layer.bias]
    elif kind == "DECONVOLUTION":
        layer.__class__ = trt.IDeconvolutionLayer
        macs = _volume(inputs[0]) * math.prod(layer.kernel_size_nd) * outputs[0].shape[1] // layer.num_groups
        constants = [layer.kernel, layer.bias]
    elif kind == "MATRIX_MULTIPLY":
        layer.__class__ = trt.IMatrixMultiplyLayer
        inner = -2 if layer.op0 == trt.MatrixOperation.TRANSPOSE else -1
        macs = _volume(outputs[0]) * inputs[0].shape[inner]
    elif kind == "CONSTANT":
        layer.__class__ = trt.IConstantLayer
        constants = [layer.weights]
    if macs < 0:
        raise BundleError(
            f"layer {layer.name!r} has a free axis beside the batch, {outputs[0].shape}: export static tiles"
        )
    constants = [constant for constant in constants if constant is not None and constant.size]
    # A convolution that reads its kernel from another layer holds none itself; biases follow the kernel's type.
    held = outputs[0].dtype if constants else None
    return NetworkLayer(
        name=layer.name,
        kind=kind.lower(),
        inputs=inputs,
        outputs=outputs,
        macs=macs,
        weights_dtype=held,
        weights_elements=sum(int(constant.size) for constant in constants),
    )


def _tensor(tensor: Any) -> Tensor:
    return Tensor(
        name=tensor.name,
        dtype=TYPE_NAMES.get(tensor.dtype.name, tensor.dtype.name.lower()),
        shape=tuple(tensor.shape),
    )


def _volume(tensor: Tensor) -> int:
    return math.prod(tensor.shape)
