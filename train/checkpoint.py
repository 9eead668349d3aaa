"""A checkpoint is one safetensors file: the averaged weights, and in its metadata everything to use them.

Beside ``best.safetensors`` lies ``best.json``, the same metadata for people. Both are written under a temporary
name and renamed, so a reader never sees half a file.
"""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from engine.contract.atomic import replacing
from engine.contract.bands import SensorSpec
from engine.contract.bundle import Confidence
from engine.contract.errors import one_line
from engine.contract.formats import MalformedError, from_json
from engine.contract.sensors import Scenario
from train.config import ModelConfig, TrainConfig
from train.data.labels import ISPRS_LABELS, LabelSet
from train.data.synthetic import GSD_RANGE_M
from train.metrics import Scores
from train.system import System
from train.systems import build

FORMAT = 1
SEAL = b"gemmnet training "
DEMO = Path(__file__).parent / "demo.safetensors"
"""The shipped model's, for ``--init demo``."""


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Mean and standard deviation of one band over training scenes, raw units."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says about itself."""

    model: ModelConfig
    train: TrainConfig
    sensors: tuple[SensorSpec, ...]
    """Bands and normalisation, as compiled into the model."""
    statistics: Mapping[str, tuple[BandStatistics, ...]]
    """By sensor; what the ``mean`` baseline feeds for a missing sensor."""
    dataset: str
    step: int
    metrics: Mapping[Scenario, Scores]
    """Held-out scores at this step on the first source; empty before the first validation."""
    command: str
    tools: Mapping[str, str]
    labels: LabelSet = ISPRS_LABELS
    gsd_m: tuple[float, float] = GSD_RANGE_M
    """Finest and coarsest ground sampling distance of the training scenes, in metres."""
    other_metrics: Mapping[str, Mapping[Scenario, Scores]] = field(default_factory=dict)
    """The same on the other sources of a mix, by name, for the scenarios that their scenes have the sensors for."""
    temperatures: Mapping[Scenario, float] = field(default_factory=dict)
    """What exported graphs divide a scenario's logits by (:mod:`train.temperature`); 1 where none is given."""
    confidence: tuple[Confidence, ...] = ()
    """How far confidence is off without and with them."""
    format: int = FORMAT

    @property
    def mean_f1(self) -> float:
        """Mean over sources of the mean of their scenarios' held-out mF1, 0..1: what the best checkpoint is best in.

        Needs ``metrics``.
        """
        found = [
            sum(scores.mean_f1 for scores in metrics.values()) / len(metrics)
            for metrics in (self.metrics, *self.other_metrics.values())
        ]
        return sum(found) / len(found)


def tool_versions() -> dict[str, str]:
    """Versions that decide what training computes."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def save(path: Path, weights: Mapping[str, Tensor], info: CheckpointInfo) -> None:
    """Write ``path`` (.safetensors) and the .json beside it."""
    text = msgspec.json.encode(info)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path, durable=True) as temporary:
        metadata = {"info": text.decode(), "weights_sha256": _digest(tensors)}
        # save_file would make a file that only its owner may read
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_bytes(msgspec.json.format(text, indent=2) + b"\n")


def named(text: str) -> Path:
    """The checkpoint that a word on a command line means: ``demo`` for the shipped one, else a path."""
    return DEMO if text == "demo" else Path(text)


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels and matrices as float16; biases, norms and batch statistics as they are."""
    return {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in weights.items()}


def load(path: Path) -> tuple[System, CheckpointInfo]:
    """The model in eval mode on the CPU, with the averaged (EMA) weights, and its description.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this project, or of another format, or its tensors are not those that were
            saved: renamed, swapped, altered, of another shape or not finite.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        info = from_json(metadata["info"], CheckpointInfo)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist: pass the best.safetensors of `python -m train.run`") from error
    except (safetensors.SafetensorError, OSError, KeyError, MalformedError, RuntimeError) as error:
        raise ValueError(f"{path} is no checkpoint of `python -m train.run` ({one_line(error)})") from error
    if info.format != FORMAT:
        raise ValueError(f"{path}: checkpoint format must be {FORMAT}, received {info.format}: train again")
    again = "copy the checkpoint again, or train anew"
    wrong = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise ValueError(f"{path}: {len(wrong)} of {len(tensors)} tensors are not finite, as {wrong[0]}: {again}")
    model = build(info.model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: its tensors are not those of its model ({one_line(error, 300)}): {again}") from error
    # a checkpoint of an earlier version has no digest
    if metadata.get("weights_sha256", digest := _digest(tensors)) != digest:
        raise ValueError(f"{path}: its tensors are not those that were saved under their names: {again}")
    model.temperatures = info.temperatures
    return model.eval(), info


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what a training goes on from, with its SHA-256 in front: torch itself reads altered numbers unseen."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    sealed = hashlib.sha256(content.getbuffer()).hexdigest().encode()
    with replacing(path, durable=True) as temporary, temporary.open("wb") as stream:
        stream.write(SEAL + sealed + b"\n")
        stream.write(content.getbuffer())


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """What :meth:`train.trainer.Trainer.state` said when :func:`save_state` wrote ``path``.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = path.read_bytes()
        if not content.startswith(b"PK"):  # an earlier version wrote what torch writes
            seal, content = content[: len(SEAL) + 65], content[len(SEAL) + 65 :]
            if seal != SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n":
                raise ValueError("it is not what was written")
        found = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # zipfile's, pickle's and torch's own, with no class in common
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {one_line(error, 300)}): start from the weights that are left "
            f"with --init {path.with_name('last.safetensors')} and another --out"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not the state of a training: pass another --out")
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
