"""How much context a tile needs: the halo is measured on the model, not guessed from its receptive field.

The theoretical receptive field of a network with a transformer is the whole tile; what counts is how far from the
border its answer still changes with what lies beyond (https://arxiv.org/abs/1701.04128).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.contract.sensors import Scenario
from export.golden import GoldenInputs
from export.scenarios import inputs_of, scenario_module
from export.verify import torch_infer
from train.system import System

Classify = Callable[[Scenario, GoldenInputs], NDArray[np.uint8]]
"""A tile's classes, uint8 [T, T], in a scenario."""

STEP_PX = 8
MIN_AGREEMENT = 0.99
PLATEAU_MARGIN = 0.01


@dataclass(frozen=True, kw_only=True)
class HaloMeasurement:
    """Share of pixels whose class does not change with more context, by distance from the tile's edge.

    ``agreement[scenario][k]`` is over pixels ``k * STEP_PX`` to ``(k + 1) * STEP_PX`` from the nearest edge.
    """

    agreement: Mapping[Scenario, tuple[float, ...]]

    @property
    def halo_px(self) -> int:
        """Smallest distance at which every scenario agrees to 99 %, or to within a point of the best it ever does.

        The second clause is for what no halo mends: tokens that see their whole tile answer a little differently in
        every tile, at its centre as well.
        """
        return STEP_PX * max(_first_settled(np.array(rings)) for rings in self.agreement.values())

    def table(self) -> str:
        """The measurement as lines of text."""
        lines = ["from edge " + "".join(f"{scenario:>14}" for scenario in self.agreement)]
        for k, shares in enumerate(zip(*self.agreement.values(), strict=True)):
            span = f"{k * STEP_PX}..{(k + 1) * STEP_PX} px"
            lines.append(f"{span:<10}" + "".join(f"{share:>14.2%}" for share in shares))
        return "\n".join(lines)


def classifier(model: System) -> Classify:
    """A model in evaluation mode as a :data:`Classify`."""

    def classify(scenario: Scenario, tile: GoldenInputs) -> NDArray[np.uint8]:
        infer = torch_infer(scenario_module(model, scenario))
        classes, *_ = infer(tuple(np.ascontiguousarray(tile.sensor(sensor))[None] for sensor in inputs_of(scenario)))
        found: NDArray[np.uint8] = classes[0]
        return found

    return classify


def measure_halo(classify: Classify, scenes: Sequence[GoldenInputs], tile_px: int) -> HaloMeasurement:
    """Compare a tile's classes near its edge with those of tiles in which the same pixels lie near the centre.

    Args:
        classify: what is measured.
        scenes: each 2T x 2T; the tile under test is the centre, and its eight neighbours at half a tile's shift put
            every pixel of it at least a quarter tile from an edge.
        tile_px: side T.

    Returns:
        Rings up to a quarter tile, beyond which the comparison would be of a tile with itself.
    """
    half, quarter = tile_px // 2, tile_px // 4
    rings = quarter // STEP_PX
    edge = np.minimum(np.arange(tile_px), np.arange(tile_px)[::-1])
    ring = np.minimum(edge[:, None], edge[None, :]) // STEP_PX
    agreement = {}
    for scenario in Scenario:
        same, count = np.zeros(rings), np.zeros(rings)
        for scene in scenes:
            tiles = {
                (i, j): classify(scenario, scene.window(i * half, j * half, tile_px))
                for i in range(3)
                for j in range(3)
            }
            reference = np.empty((2 * tile_px, 2 * tile_px), np.uint8)
            core = slice(quarter, quarter + half)
            for (i, j), classes in tiles.items():
                top, left = i * half + quarter, j * half + quarter
                reference[top : top + half, left : left + half] = classes[core, core]
            agrees = tiles[1, 1] == reference[half : half + tile_px, half : half + tile_px]
            inside = ring < rings
            same += np.bincount(ring[inside], agrees[inside], rings)
            count += np.bincount(ring[inside], minlength=rings)
        agreement[scenario] = tuple(float(share) for share in same / count)
    return HaloMeasurement(agreement=agreement)


def _first_settled(rings: NDArray[np.float64]) -> int:
    return int(np.argmax(rings >= min(MIN_AGREEMENT, rings.max() - PLATEAU_MARGIN)))
