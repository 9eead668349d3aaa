"""The measured halo, on classifiers whose need of context is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from engine.contract.sensors import Scenario
from export.golden import GoldenInputs
from export.halo import STEP_PX, HaloMeasurement, measure_halo

TILE_PX = 128


def noise_scene(seed: int) -> GoldenInputs:
    rng = np.random.default_rng(seed)
    shape = (2 * TILE_PX, 2 * TILE_PX)
    return GoldenInputs(rgir=rng.integers(0, 256, (3, *shape), np.uint8), ndsm=np.zeros((1, *shape), np.float32))


def box_classifier(radius_px: int):
    """Classes of a box mean that takes what lies beyond the tile for zero, as a zero-padded network does."""

    def classify(scenario: Scenario, tile: GoldenInputs) -> NDArray[np.uint8]:
        nir = tile.rgir[0].astype(np.float64) - 100
        radius = radius_px if scenario is Scenario.FULL else 0
        return (uniform_filter(nir, 2 * radius + 1, mode="constant") > 27).astype(np.uint8)

    return classify


@pytest.mark.parametrize("radius_px", [8, 16, 24])
def test_the_halo_is_as_wide_as_the_classifiers_window(radius_px: int) -> None:
    measured = measure_halo(box_classifier(radius_px), [noise_scene(0)], TILE_PX)
    rings = measured.agreement[Scenario.FULL]
    assert len(rings) == TILE_PX // 4 // STEP_PX
    assert rings[0] < 0.9
    assert all(share == 1 for share in rings[radius_px // STEP_PX :])
    # The outermost pixels of the last ring lack only a column or two, so the 99 % may come one ring early.
    assert radius_px - STEP_PX <= measured.halo_px <= radius_px


def test_a_pointwise_classifier_needs_no_halo() -> None:
    assert measure_halo(box_classifier(0), [noise_scene(0)], TILE_PX).halo_px == 0


def test_the_neediest_scenario_decides() -> None:
    settled, late = (1.0, 1.0, 1.0), (0.5, 0.98, 0.995)
    measured = HaloMeasurement(
        agreement={Scenario.FULL: settled, Scenario.MISSING_NDSM: late, Scenario.MISSING_RGIR: settled}
    )
    assert measured.halo_px == 2 * STEP_PX


def test_disagreement_that_no_context_mends_does_not_widen_the_halo() -> None:
    plateau = (0.80, 0.92, 0.925, 0.922)
    assert HaloMeasurement(agreement={Scenario.FULL: plateau}).halo_px == STEP_PX
