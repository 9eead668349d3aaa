"""The inference libraries by themselves, called as one would call them first: no streams, no slots, no checks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.properties.hint as hints
from numpy.typing import NDArray
from openvino.properties import inference_num_threads

from engine.backends.base import BackendInfo, ExecutionPrecision, Inputs, Output
from engine.backends.openvino import shared_core

WANTED = (Output.CLASSES, Output.CONFIDENCE)
"""What a map without blending needs."""

Feed = Mapping[str, NDArray[np.generic]]
"""A batch by the graph's names: ``rgir`` uint8 [N, 3, T, T], ``ndsm`` float32 [N, 1, T, T]."""
Bare = Callable[[Feed], Any]
"""Computes the wanted outputs of one batch and waits for them."""


def open_openvino(path: Path, *, batch: int, precision: ExecutionPrecision, threads: int | None) -> Bare:
    """OpenVINO's defaults (all cores on one batch); ``fp32`` keeps it from computing in bfloat16."""
    core = shared_core()
    model = core.read_model(path)
    pruned = openvino.Model([model.output(name.value) for name in WANTED], model.get_parameters(), "bare")
    pruned.reshape({port: [batch, *list(port.partial_shape)[1:]] for port in pruned.inputs})
    config: dict[str, Any] = {} if threads is None else {inference_num_threads: threads}
    if precision == "fp32":
        config[hints.inference_precision] = openvino.Type.f32
    compiled = core.compile_model(pruned, "CPU", config)
    return lambda feed: compiled(dict(feed))


def open_onnxruntime(path: Path, *, batch: int, precision: ExecutionPrecision, threads: int | None) -> Bare:
    """ONNX Runtime's defaults, but for what :mod:`engine.backends.onnxruntime` sets to get the graph's own answers."""
    import onnxruntime  # an extra: only who asks for it needs it

    from engine.backends.onnxruntime import AS_WRITTEN, ERRORS_ONLY, PROVIDER

    del batch, precision  # its graphs take any batch, and compute in the types written into them
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry(*AS_WRITTEN)
    session = onnxruntime.InferenceSession(path, options, providers=[PROVIDER])
    return partial(session.run, [name.value for name in WANTED])


OPENERS = {"openvino": open_openvino, "onnxruntime": open_onnxruntime}
"""By the backend's name. TensorRT is not here: its plans are built for the batch of one that the engine uses."""


def open_bare(
    info: BackendInfo, path: Path, *, batch: int, precision: ExecutionPrecision, threads: int | None = None
) -> Bare | None:
    """The library under that backend; None where it cannot be had by itself."""
    opener = OPENERS.get(info.name)
    return None if opener is None else opener(path, batch=batch, precision=precision, threads=threads)


def bare_tiles_per_s(infer: Bare, inputs: Sequence[Inputs], *, batch: int, count: int) -> float:
    """Tiles per second of one batch after the other, at least ``count`` tiles, after one batch of burn-in."""
    feeds = []
    for first in range(0, max(batch, len(inputs) - batch + 1), batch):
        picked = [inputs[(first + index) % len(inputs)] for index in range(batch)]
        feeds.append({sensor.value: np.stack([tile[sensor] for tile in picked]) for sensor in picked[0]})
    repeats = math.ceil(count / batch)
    infer(feeds[0])
    started = time.perf_counter()
    for index in range(repeats):
        infer(feeds[index % len(feeds)])
    return repeats * batch / (time.perf_counter() - started)
