"""What evaluating a model finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.contract.sensors import Scenario, Sensor
from train.metrics import Scores

Input = Literal["generator", "zeros", "mean"]


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """How well a missing sensor was made up, over the pixels where it was measured."""

    sensor: Sensor
    mean_absolute_error: float
    """nDSM: metres. RGIR: grey levels of 255."""
    ssim: float | None = None
    """RGIR only; in [-1, 1], 7 px windows (https://doi.org/10.1109/TIP.2003.819861)."""


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """Scores of one way to map a scenario."""

    scenario: Scenario
    input: Input
    scores: Scores
    eroded: Scores | None = None
    """Without the pixels near class boundaries."""
    tile_mean_iou: float | None = None
    """Mean over tiles of each tile's mIoU of the classes in it: higher than the pixel-accumulated one, and what the
    GEMMNet paper appears to report."""
    synthesis: Synthesis | None = None
