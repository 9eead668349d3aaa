"""A raster in blocks of rows: the files of one run, byte for byte, whatever the sensors do meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario, Sensor
from engine.grid import TileGrid
from engine.observer import Observer
from engine.request import RunRequest
from engine.rows import Cut, compose, part_of, survey
from engine.runner import open_bundle, run
from tests.conftest import make_scene
from tests.engine.runs import request_for

Write = Callable[..., dict[Sensor, Path]]


def in_blocks(request: RunRequest, bundle: Bundle, rows: int, folder: Path) -> int:
    """Map as a fleet does, into the request's output; returns the number of blocks."""
    cuts: list[Cut] = []

    def chosen(number: int) -> Callable[[TileGrid], Any]:
        def part(grid: TileGrid) -> Any:
            cuts.append(Cut(grid=grid, rows=rows))
            return part_of(cuts[-1], number, folder / "survey")

        return part

    def of(output: Path, **more: Any) -> RunRequest:
        return RunRequest(**{**vars(request), "output": output, **more})

    with ExitStack() as stack:
        opened = open_bundle(request, bundle, Scenario, stack)
        survey(request, opened, folder / "survey", Observer())
        blocks: list[Path] = []
        while not cuts or len(blocks) < cuts[0].count:
            blocks.append(folder / str(len(blocks)))
            run(of(blocks[-1]), None, opened, part=chosen(len(blocks) - 1))
        compose(request, opened, cuts[0], folder / "survey", blocks)
        run(of(request.output, resume=True), None, opened)
    return len(blocks)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"watch": True, "probabilities": True}, 2),
        ({"watch": True, "blend": "none"}, 3),
        ({"area": "650003,6859935,650075,6859995", "halo_px": 16, "gsd": 0.3}, 2),
    ],
)
def test_blocks_of_rows_compose_to_the_files_of_one_run(
    wide_bundle: Bundle,
    write_scene: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    rows: int,
) -> None:
    monkeypatch.setattr("engine.stitcher.ACCUMULATOR_BYTES", 1)  # strips of four tiles
    paths = write_scene(make_scene(330, 390, seed=3), "scene")
    with rasterio.open(paths[Sensor.NDSM], "r+") as file:  # dies in the middle of a tile row, and comes back
        values = file.read(1)
        values[120:200, 60:] = np.float32(5e3)
        file.write(values, 1)
    lone = request_for(wide_bundle, paths, tmp_path / "lone", **options)
    record = run(lone)
    assert in_blocks(request_for(wide_bundle, paths, tmp_path / "all", **options), wide_bundle, rows, tmp_path) > 1
    for path in sorted((tmp_path / "lone").iterdir()):
        if path.suffix in (".tif", ".png", ".qml"):
            assert (tmp_path / "all" / path.name).read_bytes() == path.read_bytes(), path.name
    told = json.loads((tmp_path / "all" / "run.json").read_text())
    alone = json.loads((tmp_path / "lone" / "run.json").read_text())
    for name in ("result", "health", "tiles_lost", "grid", "inputs", "area"):
        assert told[name] == alone[name], name
    if options.get("watch"):
        assert record.result.switch_count > 1
