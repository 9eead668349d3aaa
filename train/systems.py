"""Every system by the name in its configuration."""

from __future__ import annotations

from train.baselines.mmformer import MmFormer
from train.baselines.shaspec import ShaSpec
from train.config import ModelConfig
from train.model import GEMMNet
from train.system import System

_CLASSES: dict[str, type[System]] = {"gemmnet": GEMMNet, "mmformer": MmFormer, "shaspec": ShaSpec}


def build(config: ModelConfig) -> System:
    """The system that ``config`` describes, with random weights."""
    return _CLASSES[config.system](config)
