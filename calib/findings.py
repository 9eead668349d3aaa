"""What a study of a scenario is asked, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calib.qdq import WeightedLayer
from calib.ranges import Method
from calib.samples import CalibrationList
from calib.scenes import SceneTile
from calib.sensitivity import SearchStep, Sensitivity
from engine.contract.bundle import Precision
from engine.contract.sensors import Scenario


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is done with which tiles.

    Raises:
        ValueError: a number is out of its range.
    """

    calibration: CalibrationList
    search: tuple[SceneTile, ...]
    evaluation: tuple[SceneTile, ...]
    sensitivity_tiles: int
    """How many of the search tiles a layer is judged on."""
    methods: tuple[Method, ...]
    budget_points: float
    """mF1 that INT8 may cost, of 100."""
    min_int8_share: float
    """Of the multiply-accumulates."""

    def __post_init__(self) -> None:
        if self.budget_points < 0 or not 0 <= self.min_int8_share <= 1:
            raise ValueError(
                f"a budget is at least 0 points and a share lies in [0, 1], received {self.budget_points} and "
                f"{self.min_int8_share}"
            )
        if not self.search or not self.evaluation or self.sensitivity_tiles < 1 or not self.methods:
            raise ValueError("tiles to search and to evaluate on and at least one method are needed, received none")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One graph on the evaluation tiles."""

    precision: Precision
    runtime: str
    """``openvino``, or ``onnxruntime`` with Q and DQ computed as they are written."""
    mean_f1: float
    """Points."""
    class_f1: tuple[float, ...]
    """0..1, by class index."""
    agreement: float
    """Share of pixels with the fp32 graph's class."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where each method clips a layer's input."""

    layer: str
    tensor: str
    thresholds: Mapping[Method, float]


@dataclass(frozen=True, kw_only=True)
class MethodScore:
    """One method with every layer INT8, on the search tiles."""

    method: Method
    mean_f1: float
    damage: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was found out about a scenario."""

    scenario: Scenario
    floating: Precision
    """Of the graph that was quantised: what stays floating is in this type."""
    layers: tuple[WeightedLayer, ...]
    """Of the INT8 graph."""
    int8_share: float
    """Of its multiply-accumulates."""
    methods: tuple[MethodScore, ...]
    method: Method
    """The one that was chosen: least damage."""
    ranges: tuple[Range, ...]
    sensitivity: tuple[Sensitivity, ...]
    steps: tuple[SearchStep, ...]
    """Of the search; the last one is what was built."""
    evaluations: tuple[Evaluation, ...]

    @property
    def loss_points(self) -> float:
        """mF1 of the fp32 graph less the INT8 graph's, on the evaluation tiles; the worse of the two runtimes."""
        fp32 = next(one.mean_f1 for one in self.evaluations if one.precision == "fp32")
        return max(fp32 - one.mean_f1 for one in self.evaluations if one.precision == "int8")
