"""Disagreement of overlapping tiles, on mappers whose answer is known."""

import numpy as np

from benchmarks import overlaps
from engine import demo
from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario, Sensor

RNG = np.random.default_rng(0)


def test_only_what_changes_with_the_tile_disagrees():
    manifest = Bundle.load(demo.BUNDLE).manifest
    side = manifest.tile_px * 9 // 8
    scene = {Sensor.RGIR: RNG.integers(0, 6, (3, side, side)).astype(np.uint8)}
    found = [
        overlaps.disagreement(classify, manifest, Scenario.MISSING_NDSM, scene)
        for classify in (
            lambda _, tile: tile[Sensor.RGIR][0],
            lambda _, tile: np.indices(tile[Sensor.RGIR].shape[1:])[0].astype(np.uint8),
            lambda _, tile: (tile[Sensor.RGIR][0] + (np.arange(manifest.tile_px) < manifest.tile_px // 8)) % 6,
        )
    ]
    assert found[:2] == [0, 1]
    assert 0 < found[2] < 0.2  # the columns of one tile that are odd there, less its halo
