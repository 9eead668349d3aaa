"""A raster in blocks of tile rows, which several machines map, to the bytes of one run.

::

    survey()    reads the whole raster once, judges every tile in order as a run does, and infers nothing but audits
    Part        what one block maps: the rows it owns and a tile row above, by the survey's verdicts
    compose()   puts the blocks' pixels into the unfinished run of the whole; resuming that run publishes it

The tiles of a block are those of the whole: same place, same pixels, same weights. What a tile depends on beyond its
own pixels is what the sensors' health was before it, and that comes from the survey. So the survey is the part that
does not grow faster with more machines; where sensors are trusted it merely reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from engine.contract.atomic import write_whole
from engine.contract.errors import writing
from engine.contract.formats import MalformedError, from_json, read_file
from engine.frames import RasterFrames
from engine.grid import TileGrid, Window
from engine.job import TileReport
from engine.journal import Entry, Journal, Statistics
from engine.map_block import MapBlock
from engine.observer import Observer
from engine.plan import Plan, make_plan
from engine.preview import CANVASES_NAME, Preview
from engine.rasters.map_kinds import PROBABILITIES
from engine.rasters.map_reader import MapReader
from engine.rasters.spool_files import BLOCK_PX
from engine.reader import Part, Past
from engine.request import RunRequest
from engine.runner import OpenBundle, Start, open_sink, run_key
from engine.tile_log import NAME as TILE_LOG_NAME
from engine.tile_log import STAGES, TileLog, TileRow, read_tile_log

STATE_NAME = "survey.json"
PIECE_PX = 8 * BLOCK_PX
"""So many columns are composed at a time."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Blocks of a grid, ``rows`` tile rows each.

    >>> grid = TileGrid(height=1000, width=300, tile_px=100, halo_px=10, fade_px=10, strip_tiles=4)
    >>> cut = Cut(grid=grid, rows=5)
    >>> cut.count, cut.owned(1), cut.reads(1)
    (3, (400, 800), Window(row=320, col=0, height=500, width=300))
    """

    grid: TileGrid
    rows: int

    @classmethod
    def of(cls, grid: TileGrid, block_px: float) -> Cut:
        """Blocks of about so many pixels, but of two tile rows at least."""
        return cls(grid=grid, rows=max(2, round(block_px / (grid.width * grid.rows.stride))))

    @property
    def count(self) -> int:
        """How many blocks."""
        return math.ceil(self.grid.rows.count / self.rows)

    def owned(self, number: int) -> tuple[int, int]:
        """First and end pixel row of a block's part of the map."""
        return self._top(number * self.rows), self._top((number + 1) * self.rows)

    def reads(self, number: int) -> Window:
        """The rows that a block reads: its own tiles, and the tile row above that fades into them."""
        axis = self.grid.rows
        first, stop = self._tile_rows(number)
        top = axis.start(first)
        bottom = axis.length if stop == axis.count else axis.start(stop - 1) + axis.tile_px
        return Window(row=top, col=0, height=bottom - top, width=self.grid.width)

    def tiles(self, number: int) -> dict[int, int]:
        """Tiles of a block, counted within it, by what they are counted in the whole; with those of the row above."""
        first, _ = self._tile_rows(number)
        own = replace(self.grid, height=self.reads(number).height)
        found = {}
        for mine, whole in zip(own.strips, self.grid.strips, strict=True):
            for index in range(mine.first_index, mine.stop_index):
                row, place = divmod(index - mine.first_index, mine.tiles_per_row)
                found[whole.first_index + (row + first) * whole.tiles_per_row + place] = index
        return found

    def _tile_rows(self, number: int) -> tuple[int, int]:
        return max(0, number * self.rows - 1), min(self.grid.rows.count, (number + 1) * self.rows)

    def _top(self, row: int) -> int:
        """First pixel row that is finished with a tile row, not with the one above."""
        return self.grid.rows.boundary(row) - (self.grid.fade_px if 0 < row < self.grid.rows.count else 0)


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a survey found, but for its tiles."""

    statistics: Statistics
    monitor: Mapping[str, Any] | None


def survey(request: RunRequest, opened: OpenBundle, folder: Path, watcher: Observer) -> None:
    """Judge every tile of a raster, and write down what a run would have made of it: ``tiles.csv`` and the inputs'
    share of the preview.

    Raises:
        EngineError: as :func:`engine.runner.run`.
    """
    with ExitStack() as stack:
        plan = make_plan(replace(request, output=folder), stack, bundle=opened.bundle)
        rasters = _rasters(plan)
        source = plan.open_source(opened.backend)
        stack.callback(source.stop)
        state = _State(statistics=Statistics(), monitor=None)
        state.statistics.sensors.advice.extend(plan.advice(opened.backend))
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        grid = rasters.grid
        preview = Preview(folder, height=grid.height, width=grid.width, sensors=plan.sensors)
        with TileLog(folder / TILE_LOG_NAME) as tiles:
            for job in source:
                switch = state.statistics.add_tile(job)
                preview.add_job(job)
                state = replace(state, monitor=job.monitor)
                told = TileReport(
                    frame="",
                    tile=job.tile,
                    scenarios=job.scenarios,
                    verdicts=job.verdicts,
                    skipped=job.skipped,
                    switched=switch is not None,
                    available_at=job.available_at,
                    **dict.fromkeys((*(f"{stage}_s" for stage in STAGES), "latency_s"), 0.0),
                    queue_depth=0,
                )
                job.release()
                tiles.append(told)
                watcher.tile_done(told)
        with writing(folder):
            preview.flush()
            write_whole(folder / STATE_NAME, msgspec.json.encode(state))


def part_of(cut: Cut, number: int, surveyed: Path) -> Part:
    """A block, as :func:`engine.runner.run` takes it.

    Args:
        cut: of the raster.
        number: of the block, from 0.
        surveyed: the folder of its survey.

    Raises:
        OSError, ValueError: the survey cannot be read.
    """
    mine = cut.tiles(number)
    past = {
        mine[row.tile]: Past(verdicts=row.verdicts, skipped=row.skipped)
        for row in read_tile_log(surveyed / TILE_LOG_NAME)
        if row.tile in mine
    }
    return Part(window=cut.reads(number), past=past)


def compose(request: RunRequest, opened: OpenBundle, cut: Cut, surveyed: Path, blocks: Sequence[Path]) -> None:
    """Make the unfinished run of the whole raster as if this process had mapped it; what is left is to resume it.

    Args:
        request: of the whole; its output is a folder of this machine.
        opened: of all runs.
        cut: of the raster.
        surveyed: the folder of its survey.
        blocks: the folders of the blocks' maps, in order.

    Raises:
        EngineError: a map cannot be read, or there is no room.
        OSError, ValueError: the survey or a log cannot be read.
    """
    try:
        state = from_json(read_file(surveyed / STATE_NAME), _State)
    except MalformedError as error:
        raise ValueError(f"{surveyed / STATE_NAME}: {error}") from error
    with ExitStack() as stack:
        plan = make_plan(request, stack, bundle=opened.bundle)
        entry = Entry(key=run_key(plan, opened.backend.info), tiles_done=0, statistics=state.statistics)
        start = Start(entry=entry, resumed=False, first_tile=0)
        sink = open_sink(plan, Journal(request.output), start, stack, Observer())
        more = (PROBABILITIES,) if plan.tiling.probabilities else ()
        pieces = (piece for number, folder in enumerate(blocks) for piece in _pieces(cut, number, folder, more))
        sink.fill(pieces, _reports(cut, surveyed, blocks), preview=surveyed / CANVASES_NAME, monitor=state.monitor)


def _rasters(plan: Plan) -> Any:
    assert isinstance(plan.frames, RasterFrames)
    return plan.frames.rasters


def _pieces(cut: Cut, number: int, folder: Path, more: Sequence[str]) -> Iterator[MapBlock]:
    """What a block owns of the maps."""
    (top, stop), above, width = cut.owned(number), cut.reads(number).row, cut.grid.width
    with MapReader(folder, more) as maps:
        for row, col in itertools.product(range(top, stop, BLOCK_PX), range(0, width, PIECE_PX)):
            window = Window(row=row, col=col, height=min(BLOCK_PX, stop - row), width=min(PIECE_PX, width - col))
            classes, confidence, provenance, *rest = maps.layers(replace(window, row=row - above))
            yield MapBlock(
                window=window,
                classes=classes,
                confidence=confidence,
                provenance=provenance,
                probabilities=rest[0] if rest else None,
            )


def _reports(cut: Cut, surveyed: Path, blocks: Sequence[Path]) -> Iterator[TileReport]:
    """Every tile in order: what the survey found, and how long the block took that owns it."""
    times: dict[int, TileRow] = {}
    for number, folder in enumerate(blocks):
        rows = {row.tile: row for row in read_tile_log(folder / TILE_LOG_NAME)}
        for whole, mine in cut.tiles(number).items():
            times.setdefault(whole, rows[mine])  # of the row above the block before is the owner
    for row, tile in zip(read_tile_log(surveyed / TILE_LOG_NAME), cut.grid.tiles(), strict=True):
        took = times[row.tile]
        yield TileReport(
            frame="",
            tile=tile,
            scenarios=() if row.scenario is None else (row.scenario,),
            verdicts=row.verdicts,
            skipped=row.skipped,
            switched=row.switched,
            available_at=0.0,
            **{f"{stage}_s": took.stages_ms[stage] / 1e3 for stage in STAGES},
            latency_s=took.latency_ms / 1e3,
            queue_depth=0,
        )
