"""How large activations get, and where to clip them.

One pass over the calibration tiles keeps a histogram of |x| per tensor; every method reads its clipping threshold from
that. INT8 is symmetric (TensorRT takes no zero point): x -> round(127 x / threshold), clipped.

Model Optimizer itself offers ``max`` and ``entropy`` only, and calibrates anew for each. ``tests/calib`` holds these
two to what it computes. The collectors of ``onnxruntime.quantization`` (1.32) need a pass for each method, count the
zeros behind a ReLU, so that entropy clips some tensors at a quarter of our threshold, and took 3.7 s a tensor to find
it, where this module takes 8 ms for all three methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.runtimes import Batch, onnxruntime_infer

Method = Literal["max", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)

BINS = 2048
LEVELS = 128
"""Magnitudes that INT8 tells apart."""
PERCENTILE = 99.99
"""Share of |x| that is not clipped, in percent (https://arxiv.org/abs/2004.09602, table 5)."""
ENTROPY_STRIDE = 16
"""Thresholds tried: every 16th of the 2048 bins, from :data:`LEVELS` up."""


@dataclass(frozen=True, kw_only=True)
class Magnitudes:
    """Histogram of |x| over every calibration tile: :data:`BINS` equal bins on [0, limit].

    Raises:
        ValueError: counts or limits make no histogram.
    """

    counts: tuple[int, ...]
    limit: float
    largest: float
    """The largest |x| seen; at most ``limit``."""

    def __post_init__(self) -> None:
        if len(self.counts) != BINS or not 0 <= self.largest <= self.limit or not np.isfinite(self.limit):
            raise ValueError(
                f"a histogram has {BINS} bins and 0 <= largest <= limit, received {len(self.counts)} bins, "
                f"{self.largest}, {self.limit}"
            )

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> Magnitudes:
        """Of one array; its limit is the next power of two, so that histograms of one tensor can be added."""
        magnitude = np.abs(values.astype(np.float32, copy=False)).ravel()
        largest = float(magnitude.max(initial=0.0))
        limit = 2.0 ** np.ceil(np.log2(max(largest, 2.0**-24)))
        counts = np.bincount(np.minimum((magnitude * (BINS / limit)).astype(np.int64), BINS - 1), minlength=BINS)
        return cls(counts=tuple(counts.tolist()), limit=float(limit), largest=largest)

    def __add__(self, other: Magnitudes) -> Magnitudes:
        limit = max(self.limit, other.limit)
        return Magnitudes(
            counts=tuple((self._widened(limit) + other._widened(limit)).tolist()),
            limit=limit,
            largest=max(self.largest, other.largest),
        )

    def _widened(self, limit: float) -> NDArray[np.int64]:
        """The counts on [0, limit], a power of two times wider: bins merge whole."""
        merge = min(BINS, round(limit / self.limit))
        return np.pad(np.array(self.counts).reshape(-1, merge).sum(axis=1), (0, BINS - BINS // merge))


def collect(model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[Batch]) -> dict[str, Magnitudes]:
    """Run a graph over calibration tiles and keep how large the named tensors get.

    Args:
        model: with floating activations.
        tensors: names of floating tensors inside it.
        batches: inputs by name.

    Raises:
        BackendError: ONNX Runtime refuses the graph or a tile.
        ValueError: there was no batch.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {value.name for value in model.graph.input}
    names = [name for name in tensors if name not in given]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    infer = onnxruntime_infer(watched, names)
    found: dict[str, Magnitudes] = {}
    for batch in batches:
        values = infer(batch) | dict(batch)
        for name in tensors:
            one = Magnitudes.of(values[name])
            found[name] = found[name] + one if name in found else one
    if set(found) != set(tensors):
        raise ValueError("calibration needs at least one tile, received none")
    return found


def threshold(magnitudes: Magnitudes, method: Method) -> float:
    """Where ``method`` clips |x|; positive."""
    if magnitudes.largest == 0:
        return 1.0  # any scale represents a tensor of zeros
    return min(_METHODS[method](magnitudes), magnitudes.largest)


def _max(magnitudes: Magnitudes) -> float:
    return magnitudes.largest


def _percentile(magnitudes: Magnitudes) -> float:
    below = np.cumsum(magnitudes.counts)
    kept = int(np.searchsorted(below, below[-1] * PERCENTILE / 100))
    return (kept + 1) * magnitudes.limit / BINS


def _entropy(magnitudes: Magnitudes) -> float:
    """The threshold whose INT8 histogram diverges least from the clipped one.

    Kullback-Leibler calibration as in "8-bit inference with TensorRT" (S. Migacz, GTC 2017): the reference is the
    histogram up to the threshold with everything beyond it in its last bin; the candidate is the same histogram
    without that, merged into 128 levels and spread evenly over each level's occupied bins.
    """
    counts = np.array(magnitudes.counts, np.float64)
    counts[0] = counts[1]  # exact zeros need no range: after a ReLU they would outweigh all else
    tails = np.cumsum(counts[::-1])[::-1]
    best, least = BINS, np.inf
    for stop in range(LEVELS, BINS + 1, ENTROPY_STRIDE):
        kept = counts[:stop]
        reference = kept.copy()
        reference[-1] += tails[stop] if stop < BINS else 0.0
        level = np.arange(stop) * LEVELS // stop
        occupied = reference > 0
        mass = np.bincount(level, kept, LEVELS)
        bins = np.bincount(level, occupied, LEVELS)
        candidate = np.where(occupied, (mass / np.maximum(bins, 1))[level], 0.0)
        divergence = _divergence(reference, candidate)
        if divergence < least:
            best, least = stop, divergence
    return (best + 0.5) * magnitudes.limit / BINS


def _divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """Sum of p log(p / q) over two histograms; infinite where q has nothing and p has."""
    if reference.sum() == 0 or candidate.sum() == 0:
        return np.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    there = p > 0
    if np.any(q[there] == 0):
        return np.inf
    return float((p[there] * np.log(p[there] / q[there])).sum())


_METHODS: Mapping[Method, Callable[[Magnitudes], float]] = {
    "max": _max,
    "entropy": _entropy,
    "percentile": _percentile,
}
