"""Training samples: random crops of prepared scenes, and whole scenes for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Scenario, Sensor, scenarios_within
from train.data.augment import augment_height, augment_optical, inside_border
from train.data.drawn_heights import drawn_heights
from train.data.labels import IGNORE_INDEX
from train.data.scenes import Scene, SceneWindow, fill_height
from train.system import availability

Value = TypeVar("Value", bound=np.generic)

RARE_BELOW = 0.03
"""A counted class with a smaller share of the labelled pixels is rare: cars, in every city so far."""
RARE_PIXELS_PER_SCENE = 4096
ZOOM = (0.7, 1.4)
"""Range of the random zoom of crops where nothing else is asked for."""
STATISTICS_SIDE_PX = 2048
"""Statistics take the middle of a larger scene."""


@dataclass(frozen=True, kw_only=True)
class RarePixels:
    """Where a scene's rare classes are: at most :data:`RARE_PIXELS_PER_SCENE` pixels of each class."""

    scene: int
    at: NDArray[np.int32]
    """int32 [n, 2]: row, column."""


def rare_pixels(scenes: Sequence[Scene], counted: Sequence[int], *, seed: int) -> dict[int, list[RarePixels]]:
    """Pixels of each class that is rare over all scenes together; empty where no class is.

    Args:
        scenes: read once, whole labels one scene at a time.
        counted: classes that may be called rare.
        seed: of the choice where a scene has too many.
    """
    totals = np.zeros(256, np.int64)
    found: dict[int, list[RarePixels]] = {index: [] for index in counted}
    rng = np.random.default_rng(seed)
    for number, scene in enumerate(scenes):
        if not scene.labelled:
            continue
        labels = np.asarray(scene.labels())
        totals += np.bincount(labels.ravel(), minlength=256)
        for index in counted:
            flat = np.flatnonzero(labels == index)
            if len(flat) > RARE_PIXELS_PER_SCENE:
                flat = rng.choice(flat, RARE_PIXELS_PER_SCENE, replace=False)
            if len(flat):
                at = np.stack(np.unravel_index(flat, labels.shape), axis=1).astype(np.int32)
                found[index].append(RarePixels(scene=number, at=at))
    known = max(int(totals[: max(counted) + 1].sum()), 1)
    return {index: places for index, places in found.items() if places and totals[index] < RARE_BELOW * known}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Scenes of one source: how often crops come from it, and how much they are magnified.

    Raises:
        ValueError: there is no scene, or the share or the zoom is not positive.
    """

    scenes: tuple[Scene, ...]
    share: float = 1.0
    """Weight beside the shares of the other pools."""
    zoom: tuple[float, float] = ZOOM
    """Range of the random zoom; above 1 magnifies. A scene smaller than the crop is magnified as far as it must."""
    gsd_m: tuple[float, float] | None = None
    """Range of the ground sampling distance that scenes are brought to before the zoom, in metres; None to leave them
    as they are."""
    drawn_gsd_m: float | None = None
    """Ground sampling distance of scenes for which heights are drawn from labels where there are none
    (:mod:`train.data.drawn_heights`); None to draw none."""

    def __post_init__(self) -> None:
        if not self.scenes:
            raise ValueError("a pool needs at least one scene, received none")
        if not self.share > 0 or not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"share and zoom must be positive, received {self.share} and {self.zoom}")
        if self.gsd_m is not None and (unknown := [scene.name for scene in self.scenes if scene.gsd_m is None]):
            raise ValueError(
                f"a range of ground sampling distances needs scenes that tell theirs; {len(unknown)} do not, such as "
                f"{unknown[0]}: georeference them, or prepare them again in another cache"
            )

    def draw_zoom(self, scene: Scene, rng: np.random.Generator) -> float:
        """How much a crop of a scene is magnified."""
        zoom = float(np.exp(rng.uniform(*np.log(self.zoom))))
        if self.gsd_m is not None:
            assert scene.gsd_m is not None
            zoom *= scene.gsd_m / float(np.exp(rng.uniform(*np.log(self.gsd_m))))
        return zoom


class CropDataset(Dataset[dict[str, Tensor]]):
    """Random augmented crops; sample ``i`` depends on (seed, i) alone, whatever worker makes it.

    An item holds ``rgir`` uint8 [3, S, S], ``ndsm`` float32 [1, S, S] (holes filled), ``rgir_valid`` and
    ``ndsm_valid`` bool [S, S], ``labels`` uint8 [S, S] and ``available`` bool [2], its scenario drawn uniformly among
    those that the scene has the sensors for; with drawn heights one in three has both, the others RGIR.

    Args:
        pools: to draw from; within a pool each scene has the same chance.
        counted: classes that may be sampled more often when rare.
        length: number of samples.
        crop_px: side S.
        seed: of the draw.
        rare_share: share of samples that hold a pixel of a rare class of their pool, one such class as often as
            another.
        border_share: share of samples without data or labels beyond a line (:func:`train.data.augment.inside_border`).
        weak: add ``rgir_weak`` and ``ndsm_weak``, the same crop as it was measured, for a teacher.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        counted: Sequence[int],
        length: int,
        crop_px: int,
        seed: int,
        rare_share: float = 0.0,
        border_share: float = 0.0,
        weak: bool = False,
    ) -> None:
        self.pools, self.length, self.weak = list(pools), length, weak
        self.crop_px, self.seed = crop_px, seed
        self.rare_share, self.border_share = rare_share, border_share
        self.shares = np.cumsum([pool.share for pool in pools]) / sum(pool.share for pool in pools)
        self.rare = [
            list(rare_pixels(pool.scenes, counted, seed=seed).values()) if rare_share else [] for pool in pools
        ]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        pool, scene, window = self._place(rng)
        crop = _resized(scene.read(*window), self.crop_px)
        sensors = scene.sensors
        if pool.drawn_gsd_m is not None and scene.labelled and Sensor.NDSM not in sensors:
            drawn = drawn_heights(crop.labels, pool.drawn_gsd_m * window[2] / self.crop_px, rng)
            heights, measured = fill_height(drawn)
            crop = replace(crop, ndsm=heights, ndsm_valid=measured)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))

        def orient(x: NDArray[Value]) -> NDArray[Value]:
            x = np.rot90(x, turns, axes=(-2, -1))
            return np.ascontiguousarray(x[..., ::-1] if flip else x)

        scenarios = [scenario for scenario in Scenario if scenario in scenarios_within(sensors)]
        if crop.ndsm_valid.any() and Sensor.NDSM not in sensors:
            # Drawn heights tell their classes apart by themselves: they never stand alone.
            scenarios, sensors = [Scenario.MISSING_NDSM, Scenario.MISSING_NDSM, Scenario.FULL], frozenset(Sensor)
        item = {
            "rgir": augment_optical(orient(crop.rgir), rng),
            "rgir_valid": orient(crop.rgir_valid),
            "ndsm": augment_height(orient(crop.ndsm), rng)[None],
            "ndsm_valid": orient(crop.ndsm_valid),
            "labels": orient(crop.labels),
            "available": np.array(availability(scenarios[int(rng.integers(len(scenarios)))])),
        }
        if self.weak:
            item |= {"rgir_weak": orient(crop.rgir), "ndsm_weak": orient(crop.ndsm)[None]}
        if self.border_share and rng.random() < self.border_share:
            inside = inside_border(self.crop_px, rng)
            for sensor in sensors:
                item[sensor.value] = fill_nodata(item[sensor.value], inside)
                item[f"{sensor}_valid"] = item[f"{sensor}_valid"] & inside
            item["labels"][~inside] = IGNORE_INDEX
        return {name: torch.from_numpy(array) for name, array in item.items()}

    def _place(self, rng: np.random.Generator) -> tuple[Pool, Scene, tuple[int, int, int, int]]:
        """A pool, a scene of it and a window there: row, column, height, width."""
        number = int(np.searchsorted(self.shares, rng.random(), side="right")) if len(self.pools) > 1 else 0
        pool, rare, pixel = self.pools[number], self.rare[number], None
        if rare and rng.random() < self.rare_share:
            places = rare[int(rng.integers(len(rare)))]
            chosen = places[int(rng.integers(len(places)))]
            scene, pixel = pool.scenes[chosen.scene], chosen.at[int(rng.integers(len(chosen.at)))]
        else:
            scene = pool.scenes[int(rng.integers(len(pool.scenes)))]
        side = min(round(self.crop_px / pool.draw_zoom(scene, rng)), *scene.size_px)
        corner = []
        for axis, length in enumerate(scene.size_px):
            low, high = 0, length - side
            if pixel is not None:  # anywhere in the window, not in its middle: no place is special
                low, high = max(low, int(pixel[axis]) - side + 1), min(high, int(pixel[axis]))
            corner.append(int(rng.integers(low, high + 1)))
        return pool, scene, (corner[0], corner[1], side, side)


def _resized(crop: SceneWindow, size: int) -> SceneWindow:
    """A square window at another size: bands bilinear (averaged when shrunk), labels and masks nearest."""
    if crop.labels.shape == (size, size):
        return crop

    def bilinear(bands: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.from_numpy(bands)[None]
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        return x[0].numpy()

    at = ((np.arange(size) + 0.5) * crop.labels.shape[0] / size).astype(np.intp)
    nearest = np.ix_(at, at)
    return SceneWindow(
        rgir=np.rint(bilinear(crop.rgir.astype(np.float32))).astype(np.uint8),
        rgir_valid=crop.rgir_valid[nearest],
        ndsm=bilinear(crop.ndsm[None])[0],
        ndsm_valid=crop.ndsm_valid[nearest],
        labels=crop.labels[nearest],
    )


def band_statistics(scenes: Sequence[Scene]) -> dict[str, list[tuple[float, float]]]:
    """(mean, standard deviation) of each band in raw units over the middle of each scene; keys are sensor values.

    Raises:
        ValueError: no scene has one of the sensors.
    """
    sums: dict[Sensor, NDArray[np.float64]] = {}
    for scene in scenes:
        height, width = (min(length, STATISTICS_SIDE_PX) for length in scene.size_px)
        row, col = ((length - side) // 2 for length, side in zip(scene.size_px, (height, width), strict=True))
        crop = scene.read(row, col, height, width)
        for sensor, bands, valid in (
            (Sensor.RGIR, crop.rgir, crop.rgir_valid),
            (Sensor.NDSM, crop.ndsm[None], crop.ndsm_valid),
        ):
            if sensor in scene.sensors:
                x = bands[:, valid].astype(np.float64)
                moments = np.stack([np.full(len(x), x.shape[1]), x.sum(1), (x * x).sum(1)], axis=1)
                sums[sensor] = sums.get(sensor, np.zeros_like(moments)) + moments
    lacking = sorted(set(Sensor) - set(sums))
    if lacking:
        raise ValueError(f"training needs scenes of both sensors; none has {lacking[0]}: add some that do")
    result = {}
    for sensor, moments in sums.items():
        count, total, squares = moments.T
        mean = total / np.maximum(count, 1)
        deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
        result[sensor.value] = [(float(m), float(s)) for m, s in zip(mean, deviation, strict=True)]
    return result
