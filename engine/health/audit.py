"""The generators as judges: which of two sensors is wrong, by the maps of all three graphs over one tile.

The graph for a dead height sensor knows from the image what heights should be; the one for a dead camera the other way
round. What the first map calls ground should lie at 0 m, and what it calls a roof or a tree above; edges of the image
should coincide with those of the heights; and where the map with both sensors hardly differs from that without the
suspect, the suspect does no harm, whatever it shows. An audit costs three inferences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Output
from engine.contract.bundle import Manifest
from engine.contract.health import AuditLimits
from engine.contract.sensors import Scenario, Sensor
from engine.health import mends
from engine.health.agreement import Likeness, compare
from engine.health.ground import BLOCKS
from engine.health.verdict import Fault, Finding
from engine.rasters.sources import Observation

STEP_PX = 4
"""Every fourth pixel of every fourth row of the maps is looked at."""
LEAST_PIXELS = 150
"""Of a kind of class, for it to say anything."""
RAISED = ("building", "tree")
"""Classes that stand above the ground."""
RELIEF_M = 2.0
OPEN, FEW_RAISED = 0.95, 0.15
"""Open country: so much is ground by the image, and so little is high."""
ROUGH_M = 1.2
"""Somewhere in open country the ground is smoother."""
LEAST_FLOOR = 0.25
"""Hardly a town and no open land has less ground; a closed forest has."""
LEAST_RELIEF = 0.05
LOW_ROOF_M = 2.4
"""Roofs are higher, in metres."""
ALIGNED_SIGMAS = 4.5
"""Edges that agree by more coincide."""
FITTING_RANKS = 0.8
"""What is raised by the image is higher than what is not with this probability: its colours are right."""
DOUBTED = 0.05
"""So much more has a doubtful image's map to agree with that of heights."""
GREY_TREES = -0.03
"""Trees that are less green than buildings by so much are none: the image is false."""
LEAST_LIFT = 0.15
"""What is ground by an image lies at the ground more often than any pixel does, by at least so much; else the image
says nothing of heights."""
FOLLOWS = 0.35
"""Where the map of both sensors is so much more like the image's than that of heights nobody can say that the image is
the odd one."""
PLAIN = 0.9
"""A map that has one class in more of its pixels is hardly better with a doubtful sensor than without."""
MENDS = {
    Fault.BANDS: mends.BANDS_OPTION,
    Fault.GROUND: mends.SURFACE,
    Fault.UNITS: mends.UNITS,
    Fault.NOISE: mends.QUIET,
    Fault.MISPLACED: mends.REGISTER,
}
"""Of what an audit finds; blur is mended by sensor."""
FAR_PX = 28
"""Nearer than this a displaced sensor is better than none."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an audit measures; shares and probabilities in 0..1, None where the tile does not show it."""

    with_and_without_heights: float
    """Share of pixels in which the maps of both sensors and of the image alone agree."""
    with_and_without_image: float
    """The same of both sensors and heights alone."""
    apart: float
    """The same of the maps of one sensor each."""
    ground: float
    """Share of pixels that are ground by the image alone."""
    near: float | None
    """Share of these whose height is the ground's."""
    ground_m: float | None
    """Their median height."""
    floor: float
    """Share of all pixels whose height is the ground's."""
    rough_m: float
    """How much heights vary within the calmest tenth of small squares."""
    relief: float
    """Share of all pixels that are more than 2 m above or below 0."""
    roofs_m: float | None
    """Median height of what is a building by the image alone."""
    ranks: float | None
    """Probability that a pixel that is raised by the image is higher than one that is not."""
    plain: float
    """Share of the commonest class, by heights alone."""
    green: float | None
    """How much greener, by NDVI, a tree is than a building, by heights alone."""
    likeness: Likeness | None

    @property
    def blind(self) -> bool:
        """The image says nothing of where the ground is."""
        return self.near is not None and self.near - self.floor < LEAST_LIFT

    @property
    def aligned(self) -> bool:
        """Edges of image and heights coincide beyond doubt."""
        return self.likeness is not None and self.likeness.sigmas > ALIGNED_SIGMAS


def weigh(
    seen: Mapping[Sensor, Observation],
    maps: Mapping[Scenario, NDArray[np.uint8]],
    classes: Sequence[str],
    *,
    near_m: float,
) -> Evidence | None:
    """Measure one tile.

    Args:
        seen: both sensors.
        maps: classes of all three scenarios, uint8 [T, T].
        classes: their names.
        near_m: a height within this of 0 is the ground's.

    Returns:
        None where hardly a pixel has data of both.
    """
    every = (slice(None, None, STEP_PX), slice(None, None, STEP_PX))
    image, heights = seen[Sensor.RGIR], seen[Sensor.NDSM]
    valid = image.valid[every] & heights.valid[every]
    if np.count_nonzero(valid) < LEAST_PIXELS:
        return None
    full, by_image, by_heights = (maps[scenario][every][valid] for scenario in Scenario)
    height = heights.values[0][every][valid]
    raised = np.isin(by_image, _places(classes, RAISED))
    roofs = by_image == _places(classes, RAISED[:1])[0]
    ground = ~raised
    greenness = _greenness(image.values[:, *every][:, valid])
    trees, built = (by_heights == place for place in _places(classes, ("tree", "building")))
    return Evidence(
        with_and_without_heights=float((full == by_image).mean()),
        with_and_without_image=float((full == by_heights).mean()),
        apart=float((by_image == by_heights).mean()),
        ground=float(ground.mean()),
        near=float((np.abs(height[ground]) < near_m).mean()) if _enough(ground) else None,
        ground_m=float(np.median(height[ground])) if _enough(ground) else None,
        floor=float((np.abs(height) < near_m).mean()),
        rough_m=_roughness(heights.values[0], heights.valid),
        relief=float((np.abs(height) > RELIEF_M).mean()),
        roofs_m=float(np.median(height[roofs])) if _enough(roofs) else None,
        ranks=_ranks(height, raised) if _enough(ground) and _enough(raised) else None,
        plain=float(np.bincount(by_heights).max() / by_heights.size),
        green=float(np.median(greenness[trees]) - np.median(greenness[built]))
        if _enough(trees) and _enough(built)
        else None,
        likeness=compare(image, heights),
    )


def judge(evidence: Evidence, doubts: Mapping[Sensor, Collection[Fault]], limits: AuditLimits) -> dict[Sensor, Finding]:
    """Who is wrong, if anybody: at most one sensor.

    Args:
        evidence: of this tile.
        doubts: faults that cheaper signs suspect each sensor of.
        limits: of the model.
    """
    image, heights = doubts.get(Sensor.RGIR, ()), doubts.get(Sensor.NDSM, ())
    blurred = Fault.BLURRED in image
    lost = (evidence.blind and evidence.apart < limits.apart) or evidence.plain > PLAIN
    if blurred and lost and evidence.with_and_without_image < limits.harmless:
        return {Sensor.RGIR: _guilty(Fault.BLURRED, Sensor.RGIR, evidence)}
    image = [each for each in image if each is not Fault.BLURRED]
    if image:
        fits = evidence.ranks is None or evidence.ranks > FITTING_RANKS
        says = not evidence.blind and evidence.apart > limits.apart + DOUBTED
        if fits or says or evidence.with_and_without_image >= limits.harmless:
            return {}
        return {Sensor.RGIR: _guilty(next(iter(image)), Sensor.RGIR, evidence)}
    fault, words = _height_fault(evidence, heights, limits)
    if blurred and fault is Fault.MISPLACED:  # a blurred image has no edges to go by
        fault = None
    if fault is not None and evidence.with_and_without_heights < limits.harmless:
        return {Sensor.NDSM: _guilty(fault, Sensor.NDSM, evidence, words)}
    if (
        fault is None
        and not heights
        and _opposed(evidence, limits)
        and evidence.with_and_without_image < limits.harmless
    ):
        words = "colours contradict heights whose edges are those of the image"
        grey = evidence.green is not None and evidence.green < GREY_TREES
        hard = grey or _useless(evidence, limits)
        return {Sensor.RGIR: replace(_guilty(Fault.BANDS, Sensor.RGIR, evidence, words), hard=hard)}
    return {}


def suspects_heights(evidence: Evidence, doubts: Collection[Fault], limits: AuditLimits) -> bool:
    """Something is wrong with the heights, be it without harm in this tile."""
    return _height_fault(evidence, doubts, limits)[0] is not None


def _height_fault(evidence: Evidence, doubts: Collection[Fault], limits: AuditLimits) -> tuple[Fault | None, str]:
    """What is wrong with the heights, if anything, and in words."""
    ranks, alike, near = evidence.ranks, evidence.likeness, evidence.near
    both = evidence.with_and_without_heights
    if near is not None and evidence.ground > 0.05:
        words = f"what is ground by the image lies at {evidence.ground_m:.1f} m"
        if evidence.ground > PLAIN and near < limits.grounded:
            return Fault.GROUND, words
        if Fault.GROUND in doubts and (near < limits.grounded or (ranks is not None and ranks < 0.5)):
            return Fault.GROUND, words
        if evidence.floor < LEAST_FLOOR and near < limits.grounded and both < limits.agreement + 0.1:
            return Fault.GROUND, words
        open_ground = evidence.ground > OPEN and alike is not None and alike.sigmas < limits.sigmas
        if open_ground and evidence.relief > LEAST_RELIEF and near < limits.grounded + 0.1 and both < 0.8:
            return Fault.MISPLACED, "heights show a town where the image shows open ground"
    if evidence.ground > OPEN and evidence.relief < FEW_RAISED and evidence.rough_m > ROUGH_M:
        return Fault.NOISE, f"heights vary by {evidence.rough_m:.1f} m wherever the image shows open ground"
    if Fault.UNITS in doubts and evidence.roofs_m is not None and evidence.roofs_m < LOW_ROOF_M:
        return Fault.UNITS, f"what is a building by the image is {evidence.roofs_m:.1f} m high"
    if Fault.BLURRED in doubts and (alike is None or not evidence.aligned):
        return Fault.BLURRED, "edges of the image are not where heights rise"
    if alike is None or ranks is None or evidence.aligned or evidence.relief < LEAST_RELIEF:
        return None, ""
    unlike = alike.explained < limits.explained
    if unlike and ranks < (limits.ranks if alike.sigmas < limits.sigmas else limits.opposed):
        return Fault.MISPLACED, "heights and image show different places"
    far = max(abs(alike.down_px), abs(alike.across_px)) >= FAR_PX
    if far and alike.best > max(ALIGNED_SIGMAS + 2, 2 * alike.sigmas) and ranks < limits.ranks:
        where = f"heights fit if moved by {alike.down_px} px down and {alike.across_px} px to the right"
        return Fault.MISPLACED, where
    return None, ""


def _opposed(evidence: Evidence, limits: AuditLimits) -> bool:
    """The map from the image contradicts heights that lie where the image has its edges: its colours are wrong."""
    ranks, green = evidence.ranks, evidence.green
    if not evidence.aligned or ranks is None or evidence.floor < LEAST_FLOOR:
        return False
    if evidence.blind and green is not None and green < GREY_TREES:
        return True
    if _useless(evidence, limits):
        return True
    return evidence.with_and_without_heights < limits.agreement + 0.1 and ranks < limits.opposed


def _useless(evidence: Evidence, limits: AuditLimits) -> bool:
    """The image says nothing of heights, and its map is another one with them and without them."""
    changes = evidence.with_and_without_heights < limits.agreement
    follows = evidence.with_and_without_heights - evidence.with_and_without_image > FOLLOWS
    return evidence.blind and changes and evidence.apart < limits.apart and not follows


def _guilty(fault: Fault, suspect: Sensor, evidence: Evidence, words: str = "the audit agrees") -> Finding:
    agreement = evidence.with_and_without_heights if suspect is Sensor.NDSM else evidence.with_and_without_image
    detail = f"{words}; maps with and without it agree in {agreement:.0%} of the pixels"
    mend = MENDS.get(fault, mends.FOCUS if suspect is Sensor.RGIR else mends.POINTS)
    return Finding(fault=fault, hard=True, detail=detail, mend=mend)


def _places(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    return [classes.index(name) for name in names]


def _enough(mask: NDArray[np.bool_]) -> bool:
    return int(np.count_nonzero(mask)) >= LEAST_PIXELS


def _greenness(bands: NDArray[np.uint8]) -> NDArray[np.float32]:
    infrared, red = bands[0].astype(np.float32), bands[1].astype(np.float32)
    greenness: NDArray[np.float32] = (infrared - red) / (infrared + red + 10)
    return greenness


def _roughness(heights: NDArray[np.float32], valid: NDArray[np.bool_]) -> float:
    """The 10th percentile of how much heights vary within squares of an eighth of the tile; 0 where all have holes."""
    rows, cols = (size // BLOCKS * BLOCKS for size in heights.shape)
    split = (BLOCKS, rows // BLOCKS, BLOCKS, cols // BLOCKS)
    squares, known = heights[:rows, :cols].reshape(split), valid[:rows, :cols].reshape(split).all(axis=(1, 3))
    spans = squares[:, ::STEP_PX, :, ::STEP_PX].max(axis=(1, 3)) - squares[:, ::STEP_PX, :, ::STEP_PX].min(axis=(1, 3))
    return float(np.quantile(spans[known], 0.1)) if known.any() else 0.0


def _ranks(height: NDArray[np.float32], raised: NDArray[np.bool_]) -> float:
    """The area under the ROC curve, by the rank sum (Mann and Whitney 1947); ties fall in random order."""
    rank = np.empty(height.size)
    rank[np.argsort(height + np.random.default_rng(0).random(height.size) * 1e-4)] = np.arange(height.size)
    count = np.count_nonzero(raised)
    return float((rank[raised].mean() - (count - 1) / 2) / (height.size - count))


def auditor_of(backend: Backend, manifest: Manifest, limits: AuditLimits | None = None) -> Auditor | None:
    """An auditor that asks the graphs of a backend; None where the model lacks the classes, or audits are off.

    Args:
        backend: with the graphs of all scenarios; it may be shared, and stays the caller's.
        manifest: of its bundle.
        limits: instead of the bundle's.
    """
    limits = limits or manifest.audit
    classes = [each.name for each in manifest.classes]
    if not limits.every_tiles or not set(RAISED) <= set(classes):
        return None

    def infer(scenario: Scenario, seen: Mapping[Sensor, Observation]) -> NDArray[np.uint8]:
        inputs = {sensor: np.ascontiguousarray(seen[sensor].values) for sensor in scenario.sensors}
        outputs = backend.infer(scenario, inputs)
        if Output.CLASSES in outputs:
            return np.asarray(outputs[Output.CLASSES], np.uint8)
        return np.asarray(outputs[Output.PROBABILITIES].argmax(axis=0), np.uint8)

    return Auditor(infer=infer, classes=classes, limits=limits)


@dataclass(frozen=True, kw_only=True)
class Auditor:
    """Infers what an audit needs.

    Args:
        infer: the class map of a scenario's graph, uint8 [T, T], from the sensors' tiles.
        classes: names of the classes.
        limits: of the model.
    """

    infer: Callable[[Scenario, Mapping[Sensor, Observation]], NDArray[np.uint8]]
    classes: Sequence[str]
    limits: AuditLimits

    def examine(self, seen: Mapping[Sensor, Observation]) -> Evidence | None:
        """The evidence of one tile with both sensors."""
        maps = {scenario: self.infer(scenario, seen) for scenario in Scenario}
        return weigh(seen, maps, self.classes, near_m=self.limits.near_m)
