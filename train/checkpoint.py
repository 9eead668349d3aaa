"""A checkpoint is one safetensors file: the averaged weights, and in its metadata everything to use them.

Beside ``best.safetensors`` lies ``best.json``, the same metadata for people. Both are written under a temporary
name and renamed, so a reader never sees half a file.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from engine.contract.bands import SensorSpec
from engine.contract.sensors import Scenario
from train.config import ModelConfig, TrainConfig
from train.data.labels import ISPRS_LABELS, LabelSet
from train.data.synthetic import GSD_RANGE_M
from train.metrics import Scores
from train.system import System
from train.systems import build

FORMAT = 1


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
    """Held-out scores at this step; empty before the first validation."""
    command: str
    tools: Mapping[str, str]
    labels: LabelSet = ISPRS_LABELS
    gsd_m: tuple[float, float] = GSD_RANGE_M
    """Finest and coarsest ground sampling distance of the training scenes, in metres."""
    format: int = FORMAT

    @property
    def mean_f1(self) -> float:
        """Mean of the scenarios' held-out mF1, 0..1: what the best checkpoint is the best in. Needs ``metrics``."""
        return sum(scores.mean_f1 for scores in self.metrics.values()) / len(self.metrics)


def tool_versions() -> dict[str, str]:
    """Versions that decide what training computes."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save(path: Path, weights: Mapping[str, Tensor], info: CheckpointInfo) -> None:
    """Write ``path`` (.safetensors) and the .json beside it."""
    text = msgspec.json.encode(info)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"info": text.decode()})
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_bytes(msgspec.json.format(text, indent=2) + b"\n")


def load(path: Path) -> tuple[System, CheckpointInfo]:
    """The model in eval mode on the CPU, with the averaged (EMA) weights, and its description.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this project, or of another format.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        info = msgspec.json.decode(metadata["info"], type=CheckpointInfo)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist: pass the best.safetensors of `python -m train.run`") from error
    except (safetensors.SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path} is no checkpoint of `python -m train.run` ({error})") from error
    if info.format != FORMAT:
        raise ValueError(f"{path}: checkpoint format must be {FORMAT}, received {info.format}: train again")
    model = build(info.model)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval(), info
