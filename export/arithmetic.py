"""Which arithmetic an engine does: every multiply-accumulate of a parsed network, by the type it is computed in.

A strongly typed network computes a layer in the type of its operands. Int8 is the one case that no operand shows: a
convolution or matrix product is written in floating point between ``DEQUANTIZE`` layers and becomes an integer one only
where both its operands come from one (TensorRT documentation, "Working with Quantized Types"). Between the two only
layers that move data without computing are passed over, so the count is a lower bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.contract.bundle import Precision
from engine.contract.errors import BundleError
from engine.contract.plans import PlanAudit, PlanKey
from export.trt_network import NetworkLayer

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}
"""Of the types that numbers of a network have; all others belong to shapes, indices and the graph's own outputs."""
FLOATS = ("fp32", "fp16", "bf16")
MOVES_DATA = frozenset({"shuffle", "squeeze", "unsqueeze", "identity"})
MIN_SHARE: Mapping[Precision, float] = {"fp32": 0.0, "fp16": 0.95, "int8": 0.5}
"""Share of its multiply-accumulates that an engine must do in the type it is named after, or in a narrower one.

Half for int8: what calibration keeps in fp16 because int8 costs accuracy there is meant to be there, but an engine of
which most is not int8 should not bear the name.
"""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A layer that multiplies and accumulates."""

    layer: NetworkLayer
    type: str
    """What it is computed in, a key of :data:`BITS`."""
    remark: str
    """Why it is not an integer layer, where one operand alone is quantised; else empty."""


def products(layers: Sequence[NetworkLayer]) -> tuple[Product, ...]:
    """Every convolution and matrix product, in execution order."""
    producers = {tensor.name: layer for layer in layers for tensor in layer.outputs}
    return tuple(_product(layer, producers) for layer in layers if layer.macs)


def audit(layers: Sequence[NetworkLayer], precision: Precision) -> PlanAudit:
    """Count a network that is to be an engine of this precision."""
    producers = {tensor.name: layer for layer in layers for tensor in layer.outputs}
    found = products(layers)
    macs = sum(product.layer.macs for product in found)
    by_type: Counter[str] = Counter()
    for product in found:
        by_type[product.type] += product.layer.macs
    return PlanAudit(
        macs=macs,
        mac_share={type_: count / macs for type_, count in by_type.most_common()},
        layers=sum(computes(layer) for layer in layers),
        fallbacks=tuple(product.layer.name for product in found if BITS[product.type] > BITS[precision]),
        casts=sum(_is_cast(layer, producers) for layer in layers),
        weights_bytes=_weights_bytes(layers),
    )


def computes(layer: NetworkLayer) -> bool:
    """Whether a layer yields numbers of the network, not a shape, an index or a constant."""
    return layer.kind != "constant" and layer.outputs[0].dtype in BITS


def share_within(audited: PlanAudit, precision: Precision) -> float:
    """Share of the multiply-accumulates in a type no wider than ``precision``."""
    return sum(share for type_, share in audited.mac_share.items() if BITS[type_] <= BITS[precision])


def require_share(audited: PlanAudit, key: PlanKey, minimum: float) -> None:
    """Refuse an engine that is not what it is named.

    Raises:
        BundleError: less than ``minimum`` of the multiply-accumulates are in the key's precision.
    """
    share = share_within(audited, key.precision)
    if share >= minimum:
        return
    worst = ", ".join(audited.fallbacks[:5]) + (", …" if len(audited.fallbacks) > 5 else "")
    again = "python -m calib.run" if key.precision == "int8" else "python -m export.run"
    raise BundleError(
        f"an engine named {key.precision} must do {minimum:.0%} of its multiply-accumulates in {key.precision}; the "
        f"graph of {key.scenario} does {share:.1%} ({len(audited.fallbacks)} layers are wider: {worst}): make it again "
        f"with `{again}`, or lower --min-{key.precision}-share"
    )


def _product(layer: NetworkLayer, producers: Mapping[str, NetworkLayer]) -> Product:
    operands = [_integer_type(tensor.name, producers) for tensor in layer.inputs[:2]]
    activation, weights = operands[0], operands[1] if len(operands) > 1 else None
    if activation is not None and weights is not None:
        return Product(layer=layer, type=max(activation, weights, key=lambda type_: BITS[type_]), remark="")
    remark = "weights are not quantised" if activation else "input is not quantised" if weights else ""
    return Product(layer=layer, type=layer.inputs[0].dtype, remark=remark)


def _integer_type(tensor: str, producers: Mapping[str, NetworkLayer]) -> str | None:
    """The narrow type that a tensor was dequantised from; None if it was not."""
    producer = producers.get(tensor)
    while producer is not None and producer.kind in MOVES_DATA:
        producer = producers.get(producer.inputs[0].name)
    return producer.inputs[0].dtype if producer is not None and producer.kind == "dequantize" else None


def _is_cast(layer: NetworkLayer, producers: Mapping[str, NetworkLayer]) -> bool:
    if layer.kind not in ("cast", "quantize"):
        return False
    before, after = layer.inputs[0].dtype, layer.outputs[0].dtype
    producer = producers.get(layer.inputs[0].name)
    at_run_time = producer is None or producer.kind != "constant"
    return at_run_time and before != after and before in FLOATS and after in BITS


def _weights_bytes(layers: Iterable[NetworkLayer]) -> int:
    layers = list(layers)
    quantised = {layer.inputs[0].name: layer.outputs[0].dtype for layer in layers if layer.kind == "quantize"}
    bits = 0
    for layer in layers:
        if layer.weights_dtype in BITS:
            bits += layer.weights_elements * BITS[quantised.get(layer.outputs[0].name, layer.weights_dtype)]
    return bits // 8
