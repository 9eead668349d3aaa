"""Sensor health on real and procedural scenes: clean tiles raise no alarm, hard faults are seen where they start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import demo
from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.health import default_limits
from engine.contract.sensors import Sensor
from engine.grid import TileGrid
from engine.health.faults import SOFT, Injection, Injector, Kind, kinds_of
from engine.health.monitor import Fault, Monitor, State
from engine.rasters.raster import SensorRasters
from engine.rasters.sources import Observation
from tests.engine.made_tiles import NDSM, RGIR, Seen, observation, states
from train.data.synthetic import STYLES, generate

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL = ("rural_strip", "town_north", "town_palms_a", "town_palms_b")
SPECS = {RGIR: rgir_spec(), NDSM: ndsm_spec()}


def shifted_tiles(paths: dict[Sensor, Path]) -> Iterator[Seen]:
    """Tiles as the engine reads them, 512 px with a halo of 32, each followed by itself 2 px further."""
    with SensorRasters.open(paths, SPECS) as rasters:
        grid = TileGrid(height=rasters.grid.height, width=rasters.grid.width, tile_px=512, halo_px=32)
        for tile in grid.tiles():
            for shift in (0, 2):
                yield dict(rasters.read(tile.reads.row + shift, tile.reads.col + shift, 512, 512))


def procedural_tiles(style: str, *, size_px: int = 256, gsd_m: float = 0.15) -> Iterator[Seen]:
    """One scene in 192 px tiles that overlap."""
    scene = generate(seed=71, size_px=size_px, gsd_m=gsd_m, style=style)
    for row in (0, size_px - 192):
        for col in (0, size_px - 192):
            window = (slice(None), slice(row, row + 192), slice(col, col + 192))
            heights = scene.ndsm[window].astype(np.float32)
            yield {
                RGIR: observation(scene.rgir[window]),
                NDSM: observation(heights, np.isfinite(heights[0])),
            }


@pytest.fixture(scope="module")
def clean() -> dict[str, list[Seen]]:
    """Tiles in which nothing is wrong, by scene."""
    scenes = {"demo": list(shifted_tiles(dict(demo.SCENE)))}
    scenes |= {f"procedural {style}": list(procedural_tiles(style)) for style in STYLES}
    scenes["procedural coarse forest"] = list(procedural_tiles("forest_edge", gsd_m=0.45))
    if SHARED.is_dir():
        scenes |= {
            name: list(shifted_tiles({sensor: SHARED / name / f"{sensor}.tif" for sensor in Sensor})) for name in REAL
        }
    return scenes


def test_clean_tiles_raise_no_alarm(clean: dict[str, list[Seen]]) -> None:
    judged = 0
    for name, tiles in clean.items():
        judge = Monitor(default_limits())
        for place, seen in enumerate(tiles):
            for sensor, verdict in judge.assess(seen).items():
                assert verdict.fault in (None, Fault.NO_DATA), f"{name}, tile {place}, {sensor}: {verdict}"
                judged += verdict.fault is None
    assert judged > 100


def test_the_real_scenes_are_among_the_clean_ones(clean: dict[str, list[Seen]]) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"the real scenes are not at {SHARED}")
    assert set(REAL) < set(clean)


EXPECTED = {
    Kind.DEAD: Fault.NO_DATA,
    Kind.HOLES: Fault.HOLES,
    Kind.CONSTANT: Fault.CONSTANT,
    Kind.FROZEN: Fault.FROZEN,
    Kind.SATURATED: Fault.SATURATED,
    Kind.DARK: Fault.DARK,
    Kind.STUCK: Fault.STUCK_COLUMNS,
    Kind.RANGE: Fault.OUT_OF_RANGE,
    Kind.NOISE: Fault.NOISE,
    Kind.LATE: Fault.LATE,
    Kind.ERROR: Fault.READ_ERROR,
}


@pytest.mark.parametrize(("sensor", "kind"), [(s, k) for s in Sensor for k in kinds_of(s) if k not in SOFT])
def test_a_hard_fault_kills_the_sensor_in_the_tile_where_it_starts(
    sensor: Sensor, kind: Kind, clean: dict[str, list[Seen]]
) -> None:
    for name, tiles in clean.items():
        start = next((place for place in range(1, len(tiles)) if has_data(tiles[place], sensor)), None)
        if start is None or (kind is Kind.FROZEN and not has_data(tiles[start - 1], sensor)):
            continue
        injector = Injector([Injection(sensor=sensor, kind=kind, first=start, last=None)])
        judge = Monitor(default_limits())
        for place, seen in enumerate(tiles[: start + 1]):
            verdicts = judge.assess(injector.apply(place, seen))
        assert (verdicts[sensor].state, verdicts[sensor].fault) == (State.DEAD, EXPECTED[kind]), f"{name}: {verdicts}"
        other = next(each for each in Sensor if each is not sensor)
        assert verdicts[other].fault in (None, Fault.NO_DATA), f"{name}: {verdicts}"


def has_data(seen: Seen, sensor: Sensor) -> bool:
    sighting = seen[sensor]
    return isinstance(sighting, Observation) and bool(sighting.valid.mean() > 0.05)


@pytest.mark.parametrize("sensor", Sensor)
def test_scattered_holes_are_suspicious_and_then_deadly(sensor: Sensor, clean: dict[str, list[Seen]]) -> None:
    injector = Injector([Injection(sensor=sensor, kind=Kind.HOLES, first=0, last=None)])
    tiles = [tile for tile in clean["procedural suburb"] if has_data(tile, sensor)]
    found = states(Monitor(default_limits()), sensor, [injector.apply(i, seen) for i, seen in enumerate(tiles)])
    assert [verdict.state for verdict in found[:3]] == [State.DEGRADED, State.DEGRADED, State.DEAD]
    assert {verdict.fault for verdict in found} == {Fault.HOLES}
