"""What a library says it built: the layers of an engine, and what their arithmetic and memory traffic come to.

Two sources say the same. The builder logs the list at its verbose level at the end of a build, which needs no device;
the engine inspector gives it as JSON, on the device. Both hold ``Name``, ``LayerType``, ``Inputs``, ``Constants``,
``Outputs`` and ``Metadata`` with the names of the ONNX nodes a layer was made of; a tensor's type stands under
``Datatype`` (TensorRT-RTX 1.7, TensorRT 11) or, with words about its layout, under ``Format/Datatype`` (TensorRT 10,
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#engine-inspector).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.contract.bundle import Precision
from engine.contract.errors import BackendError
from engine.contract.plans import EngineAudit, PlanAudit, PlanKey
from export.arithmetic import BITS, FLOATS, Product

LIST_TITLES = ("Layers:", "Engine Layer Information:")
"""How the message that holds the list begins."""
UNKNOWN = "unknown"
NO_WORK = frozenset({"signal", "wait", "constant", "noop", "shape_call"})
"""Kinds of layers that start no kernel: order between streams, constants, shapes."""
GENERATED = "kgen"
"""Kind of a kernel that the compiler wrote for a chain of small operations."""
SPELLINGS = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "uint8": "uint8",
    "int4": "int4",
    "fp4": "fp4",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
"""Of types, as whole words: ``Half``, ``Row major linear FP32``, ``Thirty-two wide channel vectorized row major Int8
format``."""
OTHER_BITS = {"uint8": 8, "bool": 8, "int32": 32, "int64": 64}

_HEADER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w*)")
_SECTION = re.compile(r"\b(Inputs|Constants|Outputs): \[")
_TENSOR = re.compile(r"\{ Name: .*?, Dimensions: \[(?P<sides>[-\d,]*)\](?P<rest>.*?) \}(?=,|\])")
_TYPE = re.compile(r"\b(?:Datatype|Format/Datatype): ([^,}]+)")
_WEIGHTS = re.compile(r'\bWeights: \{ ?"?Type"?: "?(\w+)"?, "?Count"?: (\d+)')
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SERIAL = re.compile(r"_myl\d+_\d+$")


@dataclass(frozen=True, kw_only=True)
class BuiltTensor:
    """An edge between kernels."""

    type: str
    """A key of :data:`export.arithmetic.BITS` or of :data:`OTHER_BITS`, or ``unknown``."""
    elements: int
    """For one tile."""

    @property
    def nbytes(self) -> int:
        """0 for an unknown type."""
        return self.elements * (BITS | OTHER_BITS).get(self.type, 0) // 8


@dataclass(frozen=True, kw_only=True)
class BuiltLayer:
    """A layer of an engine: a kernel, or an instruction between kernels."""

    name: str
    kind: str
    """``LayerType`` in lower case; empty where there is none."""
    nodes: frozenset[str]
    """Names of the network's layers that it computes, as far as the library tells."""
    inputs: tuple[BuiltTensor, ...]
    outputs: tuple[BuiltTensor, ...]
    weights: BuiltTensor | None
    """The largest of the constants inside it."""


def layers_of_log(message: str) -> tuple[BuiltLayer, ...]:
    """Read the list that the builder logs; empty where it knows names alone."""
    return tuple(_logged(line) for line in message.splitlines() if line.startswith("Name: "))


def layers_of_inspector(information: Mapping[str, Any]) -> tuple[BuiltLayer, ...]:
    """Read ``IEngineInspector``'s JSON.

    Raises:
        BackendError: it holds layer names alone, as for an engine built without detailed profiling verbosity.
    """
    layers = information.get("Layers", [])
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise BackendError(
            "the engine holds no layer information: build it again with `python -m export.build --force`"
        )
    return tuple(_inspected(layer) for layer in layers)


def audit_engine(layers: Sequence[BuiltLayer], products: Sequence[Product], precision: Precision) -> EngineAudit:
    """Count what an engine writes, and find each of the network's products in it.

    Args:
        layers: of the engine.
        products: of the network it was built from.
        precision: that it is named after.
    """
    working = [layer for layer in layers if layer.kind not in NO_WORK]
    written: Counter[str] = Counter()
    for layer in working:
        for tensor in layer.outputs:
            written[tensor.type] += tensor.nbytes
    by_type: Counter[str] = Counter()
    fallbacks, widened = [], 0
    for product in products:
        built = _layer_of(product.layer.name, working)
        type_ = UNKNOWN if built is None else _computed_in(built)
        by_type[type_] += product.layer.macs
        if BITS.get(type_, 0) > BITS[precision]:
            fallbacks.append(product.layer.name)
        if built is not None and type_ == "int8":
            widened += any(tensor.type in FLOATS for tensor in built.outputs)
    macs = by_type.total()
    return EngineAudit(
        kernels=len(working),
        bytes_written=written.total(),
        written=dict(written.most_common()),
        mac_share={type_: count / macs for type_, count in by_type.most_common()},
        fallbacks=tuple(fallbacks),
        widened=widened,
    )


def require_built(audited: PlanAudit, key: PlanKey, minimum: float) -> None:
    """Refuse an engine that computes in wider types than its network asks for.

    What the list does not tell counts for the engine: this finds a proven fallback, not a missing proof.

    Raises:
        BackendError: less than ``minimum`` of the multiply-accumulates can be in the key's precision.
    """
    engine = audited.engine
    if engine is None:
        return
    wider = sum(share for type_, share in engine.mac_share.items() if BITS.get(type_, 0) > BITS[key.precision])
    if 1 - wider >= minimum:
        return
    types = ", ".join(f"{share:.1%} {type_}" for type_, share in engine.mac_share.items())
    worst = [name for name in engine.fallbacks if name not in audited.fallbacks]
    named = ", ".join(worst[:5]) + (", …" if len(worst) > 5 else "")
    raise BackendError(
        f"{key.library} {key.library_version} was asked for {key.scenario} in {key.precision} for {key.target} and "
        f"made an engine that computes {types} of its multiply-accumulates; at least {minimum:.0%} must be in "
        f"{key.precision} ({len(worst)} layers are wider than the graph says: {named}): take another --precision or "
        f"--target, or lower --min-{key.precision}-share"
    )


def _layer_of(node: str, layers: Iterable[BuiltLayer]) -> BuiltLayer | None:
    """What computes a layer of the network: of several that it became, the one with the most weights.

    Generated kernels come last: their constants may be anything, and most do what stands before and behind a product.
    """
    found = [layer for layer in layers if node in layer.nodes]
    return max(found, key=lambda layer: (layer.kind != GENERATED, _elements(layer.weights)), default=None)


def _computed_in(layer: BuiltLayer) -> str:
    flowing = [tensor.type for tensor in layer.inputs if tensor.type in BITS]
    if layer.kind == GENERATED and "gemm" not in layer.name:
        return UNKNOWN  # a product of few terms, written out among casts that the list does not show
    weights = layer.weights.type if layer.weights is not None else UNKNOWN
    if weights in flowing:
        return weights
    # Narrow weights alone are widened before they are multiplied.
    known = [*flowing, *([weights] if weights in BITS else [])]
    return max(known, key=lambda type_: BITS[type_], default=UNKNOWN)


def _elements(tensor: BuiltTensor | None) -> int:
    return 0 if tensor is None else tensor.elements


def _logged(line: str) -> BuiltLayer:
    header = _HEADER.match(line)
    name, kind = (header["name"], header["kind"]) if header else (line.removeprefix("Name: "), "")
    starts = [(found.start(), found[1]) for found in _SECTION.finditer(line)]
    tensors: dict[str, list[BuiltTensor]] = {"Inputs": [], "Constants": [], "Outputs": []}
    for found in _TENSOR.finditer(line):
        section = [title for start, title in starts if start < found.start()][-1]
        words = _TYPE.search(found["rest"])
        sides = [int(side) for side in found["sides"].split(",") if side]
        tensors[section].append(_tensor(words[1] if words else "", sides))
    weights = _WEIGHTS.search(line)
    return BuiltLayer(
        name=name,
        kind=kind.lower(),
        nodes=_nodes(name, line),
        inputs=tuple(tensors["Inputs"]),
        outputs=tuple(tensors["Outputs"]),
        weights=_tensor(weights[1], [int(weights[2])]) if weights else _largest(tensors["Constants"]),
    )


def _inspected(layer: Mapping[str, Any]) -> BuiltLayer:
    def tensors(section: str) -> Iterator[BuiltTensor]:
        for tensor in layer.get(section) or []:
            words = tensor.get("Datatype", tensor.get("Format/Datatype", ""))
            yield _tensor(str(words), tensor.get("Dimensions", []))

    name, weights = str(layer.get("Name", "")), layer.get("Weights")
    return BuiltLayer(
        name=name,
        kind=str(layer.get("LayerType", "")).lower(),
        nodes=_nodes(name, str(layer.get("Metadata", ""))),
        inputs=tuple(tensors("Inputs")),
        outputs=tuple(tensors("Outputs")),
        weights=_tensor(str(weights.get("Type", "")), [int(weights.get("Count", 0))])
        if isinstance(weights, dict)
        else _largest(tuple(tensors("Constants"))),
    )


def _tensor(words: str, sides: Sequence[int]) -> BuiltTensor:
    return BuiltTensor(type=_canonical(words), elements=math.prod(1 if side < 0 else side for side in sides))


def _canonical(words: str) -> str:
    return next((SPELLINGS[word] for word in re.findall(r"[a-z0-9]+", words.lower()) if word in SPELLINGS), UNKNOWN)


def _largest(constants: Sequence[BuiltTensor]) -> BuiltTensor | None:
    return max(constants, key=_elements, default=None)


def _nodes(name: str, metadata: str) -> frozenset[str]:
    """Out of the metadata; else the parts of a fused layer's name, ``convolution + relu``."""
    found = _NODE.findall(metadata)
    return frozenset(found or (part.strip() for part in _SERIAL.sub("", name).split("+")))
