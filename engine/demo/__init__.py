"""The bundle and the scene that ``python -m engine.run`` uses when it is given none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from engine.contract.sensors import Sensor

BUNDLE = Path(__file__).parent / "bundle"
"""Preset ``edge``, trained on procedural scenes and NAIP tiles: see MODEL_CARD.md."""

KEYS = Path(__file__).parent / "keys"
"""The public key of the bundle's signature; the private one was thrown away (``python -m engine.keys release``)."""

SCENE: Mapping[Sensor, Path] = MappingProxyType(
    {sensor: Path(__file__).parent / "scene" / f"{sensor}.tif" for sensor in Sensor}
)
"""A procedural neighbourhood; part of its nDSM is missing."""
