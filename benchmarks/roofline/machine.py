"""What this machine can do at best: products by type, and copies by size. Measured, never read from a data sheet.

A product is a large matrix product or a large 3x3 convolution in OpenVINO, one on each thread at once, whichever is
faster: what the best library at hand reaches where nothing but arithmetic matters. A copy is that of numpy on as many
threads. The best of all rounds counts: what another process takes away is not the machine's limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import openvino.properties as props
import openvino.properties.hint as hints

from benchmarks.roofline.graph import GraphLayer, GraphWork
from calib.runtimes import DEVICE
from engine.backends.openvino import shared_core

Arithmetic = Literal["fp32", "16-bit", "int8"]
MATRIX_SIDE = 1536
"""28 MB of operands and result in float32, 7.2 GFLOP."""
CHANNELS, MAP_SIDE = 256, 64
"""Of the 3x3 convolution: 4.8 GFLOP."""
COPY_MIB = (0.25, 1, 4, 16, 64, 256)
"""Bytes read and written by one copy, all threads together; the last is far beyond any cache."""
TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The best of all rounds."""

    gflops: Mapping[Arithmetic, float]
    """Billions of operations per second, two per multiply-accumulate. ``int8`` is absent where there is no kernel."""
    copy_gbs: Mapping[int, float]
    """GB/s, read and written bytes both counted, by bytes of one copy."""
    threads: int
    remarks: tuple[str, ...] = ()

    @property
    def memory_gbs(self) -> float:
        """Of the largest copy."""
        return self.copy_gbs[max(self.copy_gbs)]

    def gflops_of(self, type_: str) -> float:
        """Peak of a type of :class:`GraphLayer`; fp32's where the machine has none of its own."""
        arithmetic: Arithmetic = "int8" if type_ == "int8" else "fp32" if type_ == "fp32" else "16-bit"
        return self.gflops.get(arithmetic, self.gflops["fp32"])

    def compute_ms(self, layer: GraphLayer) -> float:
        """The product's time at peak."""
        return 2 * layer.macs / self.gflops_of(layer.type) / 1e6

    def memory_ms(self, layer: GraphLayer) -> float:
        """The traffic's time at the rate of copies of its size: small layers stay in cache.

        Of the sizes around it the smaller, faster one, so that it remains a floor.
        """
        sizes = [size for size in self.copy_gbs if size <= layer.traffic_bytes] or [min(self.copy_gbs)]
        return layer.traffic_bytes / self.copy_gbs[max(sizes)] / 1e6

    def layer_floor_ms(self, layer: GraphLayer) -> float:
        """The longer of both: arithmetic and traffic overlap (https://doi.org/10.1145/1498765.1498785)."""
        return max(self.compute_ms(layer), self.memory_ms(layer))

    def floor_ms(self, work: GraphWork) -> float:
        """All products at peak, or weights, inputs and outputs once over memory: no way of fusing can be faster."""
        compulsory = (work.weight_bytes + work.interface_bytes) / self.memory_gbs / 1e6
        return max(sum(self.compute_ms(layer) for layer in work.layers), compulsory)

    def layers_floor_ms(self, work: GraphWork) -> float:
        """Layer after layer: the sum of each one's floor."""
        return sum(self.layer_floor_ms(layer) for layer in work.layers)


@dataclass(kw_only=True)
class Machine:
    """Measures its peaks round by round.

    Args:
        threads: CPU threads; None is what OpenVINO takes by itself.
        matrix_side: of the matrix product.
        map_side: of the convolution.
        copy_mib: sizes of copies.
    """

    threads: int | None = None
    matrix_side: int = MATRIX_SIDE
    map_side: int = MAP_SIDE
    copy_mib: tuple[float, ...] = COPY_MIB
    remarks: list[str] = field(default_factory=list)
    _products: list[tuple[Arithmetic, float, Callable[[], object]]] = field(default_factory=list)
    _gflops: dict[Arithmetic, list[float]] = field(default_factory=dict)
    _copies: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds: list[Arithmetic] = ["fp32", "int8"]
        default = self._compile(_matrix_product(64, quantised=False), forced=False)
        floating = default.get_property(hints.inference_precision)
        self.used_threads = int(default.get_property(props.inference_num_threads))
        if floating == ov.Type.f32:
            self.remarks.append("16-bit: OpenVINO computes in f32 on this processor, so its peak is that of fp32")
        else:
            kinds.append("16-bit")
        for kind in kinds:
            quantised, forced = kind == "int8", kind != "16-bit"
            sides = {self.matrix_side: _matrix_product, self.map_side: _convolution}
            for side, build in sides.items():
                compiled = self._compile(build(side, quantised=quantised), forced=forced, streams=self.used_threads)
                request = compiled.create_infer_request()
                others = [compiled.create_infer_request() for _ in range(self.used_threads - 1)]
                values = np.random.default_rng(0).uniform(0, 1, compiled.input(0).shape).astype(np.float32)
                request.infer([values])
                kernels = {node.exec_type for node in request.profiling_info if node.node_type in _PRODUCTS}
                if quantised and not any("I8" in kernel.upper() for kernel in kernels):
                    self.remarks.append(f"int8: OpenVINO ran {build.__name__.strip('_')} in {', '.join(kernels)}")
                    continue
                for other in others:
                    other.infer([values])
                flop = 2 * (side**3 if build is _matrix_product else 9 * CHANNELS**2 * side**2) * self.used_threads
                self._products.append((kind, flop, partial(_all_at_once, (request, *others))))

    def measure(self) -> None:
        """One round of everything."""
        best: dict[Arithmetic, float] = {}
        for kind, flop, run in self._products:
            best[kind] = max(best.get(kind, 0.0), flop / _fastest(run) / 1e9)
        for kind, gflops in best.items():
            self._gflops.setdefault(kind, []).append(gflops)
        with ThreadPoolExecutor(self.used_threads) as pool:
            for mib in self.copy_mib:
                size = int(mib * 2**20)
                self._copies.setdefault(size, []).append(_copy_gbs(pool, size, self.used_threads))

    def peaks(self) -> Peaks:
        """The best of the rounds so far."""
        return Peaks(
            gflops={kind: max(found) for kind, found in self._gflops.items()},
            copy_gbs={size: max(found) for size, found in self._copies.items()},
            threads=self.used_threads,
            remarks=tuple(self.remarks),
        )

    def _compile(self, model: ov.Model, *, forced: bool, streams: int = 0) -> ov.CompiledModel:
        config: dict[Any, object] = {
            hints.performance_mode: hints.PerformanceMode.THROUGHPUT,
            props.enable_profiling: True,
        }
        if streams:
            config[props.num_streams] = streams
        if forced:
            config[hints.inference_precision] = ov.Type.f32
        if self.threads is not None:
            config[props.inference_num_threads] = self.threads
        return shared_core().compile_model(model, DEVICE, config)


_PRODUCTS = ("FullyConnected", "FullyConnectedQuantizedLegacy", "FullyConnectedQuantized", "MatMul", "Convolution")


def _matrix_product(side: int, *, quantised: bool) -> ov.Model:
    data = ops.parameter([side, side], np.float32)
    return ov.Model([ops.matmul(_activation(data, quantised), _weights((side, side), quantised), False, False)], [data])


def _convolution(side: int, *, quantised: bool) -> ov.Model:
    data = ops.parameter([1, CHANNELS, side, side], np.float32)
    weights = _weights((CHANNELS, CHANNELS, 3, 3), quantised)
    ones = [1, 1]
    return ov.Model([ops.convolution(_activation(data, quantised), weights, ones, ones, ones, ones)], [data])


def _activation(data: ov.Node, quantised: bool) -> ov.Node:
    if not quantised:
        return data
    low, high = (ops.constant(np.float32(value)) for value in (0, 1))
    return ops.fake_quantize(data, low, high, low, high, 256)


def _weights(shape: tuple[int, ...], quantised: bool) -> ov.Node:
    rng = np.random.default_rng(1)
    if not quantised:
        return ops.constant(rng.uniform(-1, 1, shape).astype(np.float32))
    # 63 of 127 steps: see tests/engine/precision_graphs.py on processors without VNNI
    levels = ops.constant(rng.integers(-63, 64, shape).astype(np.int8))
    return ops.multiply(ops.convert(levels, "f32"), ops.constant(np.float32(1 / 63)))


def _copy_gbs(pool: ThreadPoolExecutor, size: int, threads: int) -> float:
    count = size // 2 // threads // 8
    pairs = [(np.ones(count), np.zeros(count)) for _ in range(threads)]
    times = max(1, 2**26 // size)  # long enough for the clock

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(times):
            np.copyto(pair[1], pair[0])

    return 16 * count * threads * times / _fastest(lambda: list(pool.map(copy, pairs))) / 1e9


def _all_at_once(requests: tuple[ov.InferRequest, ...]) -> None:
    for request in requests:
        request.start_async()
    for request in requests:
        request.wait()


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few tries: a peak is what is reached undisturbed."""
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
