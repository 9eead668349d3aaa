"""Whole scenes by sliding window, each scenario by the path that is exported for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.contract.sensors import Scenario, Sensor
from train.data.labels import IGNORE_INDEX
from train.data.scenes import Scene
from train.results import Input
from train.system import System

TILE_PX, HALO_PX = 512, 32
"""Windows of a large scene and the border of each that is not counted, as in flight."""
STRIDE_PX = 64
"""Sides of a small scene are mirrored up to a multiple of this: no preset's coarsest grid is coarser."""

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(rgir [N, 3, H, W], ndsm [N, 1, H, W]) -> logits [N, C, H, W] and the synthesised sensor, normalised, if any."""


def predictor(model: System, scenario: Scenario) -> Predict:
    """The scenario's own path; the missing sensor is not touched."""
    match scenario:
        case Scenario.FULL:
            return lambda rgir, ndsm: (model.forward_full(rgir, ndsm), None)
        case Scenario.MISSING_NDSM:
            return lambda rgir, ndsm: model.forward_missing_ndsm(rgir)
        case Scenario.MISSING_RGIR:
            return lambda rgir, ndsm: model.forward_missing_rgir(ndsm)


def generated(model: System, scenarios: Iterable[Scenario]) -> dict[tuple[Scenario, Input], Predict]:
    """Every scenario by its own path, for :func:`train.evaluate.score`."""
    return {(scenario, "generator"): predictor(model, scenario) for scenario in scenarios}


def imputer(model: System, scenario: Scenario, constant: Mapping[Sensor, Tensor]) -> Predict:
    """The full path with the missing sensor replaced by a constant per band: a runtime without generators.

    Args:
        model: in eval mode.
        scenario: one with a missing sensor.
        constant: raw value per band, float [B], by sensor.
    """

    def predict(rgir: Tensor, ndsm: Tensor) -> tuple[Tensor, None]:
        fed = {Sensor.RGIR: rgir, Sensor.NDSM: ndsm}
        for sensor in set(Sensor) - scenario.sensors:
            fed[sensor] = constant[sensor].view(1, -1, 1, 1).expand(fed[sensor].shape)
        return model.forward_full(fed[Sensor.RGIR], fed[Sensor.NDSM]), None

    return predict


def at_gsd(predict: Predict, gsd_m: float | None, within: tuple[float, float] | None) -> Predict:
    """The same way at the nearest ground sampling distance that the network is for, as the runtime maps a raster.

    Args:
        predict: to call with resampled bands; what it answers comes back on the grid of the bands.
        gsd_m: of the bands, in metres; None where it is not known, which leaves them as they are.
        within: range that the network is for, in metres; None for any.
    """
    if gsd_m is None or within is None or within[0] <= gsd_m <= within[1]:
        return predict
    magnified = gsd_m / min(max(gsd_m, within[0]), within[1])

    def resampled(rgir: Tensor, ndsm: Tensor) -> tuple[Tensor, Tensor | None]:
        size = [rgir.shape[-2], rgir.shape[-1]]
        near = [max(round(side * magnified / STRIDE_PX), 1) * STRIDE_PX for side in size]
        bands = (_bilinear(rgir.float(), near).round(), _bilinear(ndsm, near))
        logits, made = predict(*bands)
        return _bilinear(logits, size), None if made is None else _bilinear(made, size)

    return resampled


def _bilinear(x: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationTile:
    """A window of a scene. ``core`` cuts out of it what is counted."""

    row: int
    col: int
    core: tuple[slice, slice]
    rgir: Tensor
    """uint8 [3, h, w]."""
    ndsm: Tensor
    """float32 [1, h, w], metres, holes filled."""
    valid: Mapping[Sensor, np.ndarray]
    """bool [h, w] by sensor; false beyond the scene."""
    labels: np.ndarray
    """uint8 [h, w]; 255 beyond the scene."""
    eroded: np.ndarray | None
    """``labels`` without the pixels near class boundaries, where the scene has such labels."""


def tiles(scene: Scene, *, tile_px: int = TILE_PX, halo_px: int = HALO_PX) -> Iterator[EvaluationTile]:
    """Windows whose cores cover the scene once; one smaller than a tile is mirrored up to :data:`STRIDE_PX`."""
    height, width = scene.size_px
    tall, wide = (min(tile_px, -(-length // STRIDE_PX) * STRIDE_PX) for length in scene.size_px)
    eroded = scene.labels(eroded=True) if scene.has_eroded_labels else None
    for (row, rows), (col, cols) in product(_axis(height, tile_px, halo_px), _axis(width, tile_px, halo_px)):
        seen = scene.read(row, col, min(tall, height), min(wide, width))
        beyond = (0, max(tall - height, 0)), (0, max(wide - width, 0))

        def pad(x: np.ndarray, beyond: tuple[tuple[int, int], ...] = beyond, **how: Any) -> np.ndarray:
            leading = ((0, 0),) * (x.ndim - 2)
            return np.pad(x, (*leading, *beyond), **(how or {"mode": "symmetric"}))

        unknown: dict[str, Any] = {"constant_values": IGNORE_INDEX}
        crop = np.s_[row : row + tile_px, col : col + tile_px]
        yield EvaluationTile(
            row=row,
            col=col,
            core=(rows, cols),
            rgir=torch.from_numpy(pad(seen.rgir)),
            ndsm=torch.from_numpy(pad(seen.ndsm[None])),
            valid={
                Sensor.RGIR: pad(seen.rgir_valid, constant_values=False),
                Sensor.NDSM: pad(seen.ndsm_valid, constant_values=False),
            },
            labels=pad(seen.labels, **unknown),
            eroded=None if eroded is None else pad(np.asarray(eroded[crop]), **unknown),
        )


def _axis(length: int, tile_px: int, halo_px: int) -> list[tuple[int, slice]]:
    """Where windows begin along an axis, and which part of each is counted."""
    if length <= tile_px:
        return [(0, slice(0, length))]
    starts = [*range(0, length - tile_px, tile_px - 2 * halo_px), length - tile_px]
    # two neighbours part in the middle of what both see
    parting = [0, *((first + tile_px + second) // 2 for first, second in pairwise(starts)), length]
    return [(start, slice(parting[i] - start, parting[i + 1] - start)) for i, start in enumerate(starts)]
