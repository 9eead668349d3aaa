"""Contestants that take turns, and what becomes of their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks.peers.libraries import Opener, open_peer
from benchmarks.peers.peer import Classes, Peer
from benchmarks.peers.pytorch import TorchPeer
from benchmarks.peers.subject import Subject
from benchmarks.peers.tilers import RasterPair, Tiler, TilerOpener
from benchmarks.rates import in_turn, inputs_of
from benchmarks.tiles import Tile
from engine.contract.errors import BackendError, BundleError
from engine.contract.sensors import Scenario

BURN_IN_TILES = 2
"""That do not count, at each turn: threads of the library that had the turn before come to rest."""
LeftOut = dict[str, str]
"""By contestant: why it did not take part."""


@dataclass(kw_only=True)
class ContestRow:
    """One contestant with one scenario's network, and what each round measured."""

    group: str
    """``tile`` or ``raster``."""
    subject: Subject
    scenario: Scenario
    peer: str
    precision: str
    library: str
    agreement: float
    """Share of pixels with the class of PyTorch eager in float32, of a raster by cropped tiles."""
    ready_s: float | None = None
    """From nothing loaded to the first tile: compiling, and where it is done the golden tile."""
    single_stream_ms: list[float] = field(default_factory=list)
    """Median of each round, per tile."""
    offline_ms: list[float] = field(default_factory=list)
    """Of each round, per tile."""
    raster_s: list[float] = field(default_factory=list)
    """Of each round."""


def times_of(row: ContestRow, mode: str) -> list[float]:
    """What its rounds measured: ``single_stream_ms``, ``offline_ms`` or ``raster_s``."""
    found: list[float] = getattr(row, mode)
    return found


def ratio(row: ContestRow, to: ContestRow, mode: str) -> float:
    """How many times as long ``row`` took as ``to``: the median over rounds of the ratio in one round."""
    return statistics.median(mine / other for mine, other in zip(times_of(row, mode), times_of(to, mode), strict=True))


def tile_group(
    subjects: Sequence[Subject],
    peers: Mapping[tuple[str, str], Opener],
    tiles: Sequence[Tile],
    *,
    rounds: int,
    count: int,
    left_out: LeftOut,
) -> list[ContestRow]:
    """Every subject and peer on the same tiles, scenario by scenario.

    Args:
        subjects: what is mapped with.
        peers: by name and precision.
        tiles: at least one; used again and again.
        rounds: turns of each.
        count: tiles of a turn, in each of the two modes.
        left_out: gets the peers that cannot run and why.
    """
    rows = []
    for scenario in Scenario:
        inputs = inputs_of(scenario, tiles)
        with ExitStack() as stack:
            contest: list[tuple[ContestRow, Peer]] = []
            for subject in subjects:
                truth = [TorchPeer(subject.modules[scenario], scenario).infer(tile) for tile in inputs]
                for (name, precision), opener in tqdm(peers.items(), desc=f"{scenario}: open", leave=False):
                    try:
                        started = time.perf_counter()
                        peer = open_peer(opener, subject, scenario)
                        stack.callback(peer.close)
                        peer.infer(inputs[0])
                    except (BackendError, BundleError) as error:
                        left_out[f"{subject.name}: {name}, {precision}"] = str(error)
                        continue
                    ready_s = time.perf_counter() - started
                    same = [
                        float((peer.infer(tile) == right).mean()) for tile, right in zip(inputs, truth, strict=True)
                    ]
                    row = ContestRow(
                        group="tile",
                        subject=subject,
                        scenario=scenario,
                        peer=name,
                        precision=precision,
                        library=peer.library,
                        ready_s=ready_s,
                        agreement=statistics.mean(same),
                    )
                    contest.append((row, peer))
            picked = [inputs[number % len(inputs)] for number in range(count)]
            for row, peer in in_turn(contest, rounds, f"{scenario}: tiles"):
                for tile in picked[:BURN_IN_TILES]:
                    peer.infer(tile)
                latencies_ms = []
                for tile in picked:
                    started = time.perf_counter()
                    peer.infer(tile)
                    latencies_ms.append((time.perf_counter() - started) * 1e3)
                row.single_stream_ms.append(statistics.median(latencies_ms))
                started = time.perf_counter()
                peer.infer_each(picked, lambda number, classes: None)
                row.offline_ms.append((time.perf_counter() - started) * 1e3 / count)
            rows += [row for row, _ in contest]
    return rows


def raster_group(
    subject: Subject,
    tilers: Mapping[tuple[str, str], TilerOpener],
    raster: RasterPair,
    folder: Path,
    *,
    rounds: int,
    left_out: LeftOut,
) -> list[ContestRow]:
    """The same raster through every tiler, scenario by scenario; the first is the one that maps are compared with.

    Args:
        subject: what is mapped with.
        tilers: by name and precision.
        raster: what is mapped.
        folder: for what goes to the disk.
        rounds: turns of each.
        left_out: gets the tilers that cannot run and why.
    """
    rows = []
    for scenario in Scenario:
        with ExitStack() as stack:
            contest: list[tuple[ContestRow, Tiler]] = []
            truth: Classes | None = None
            for (name, precision), opener in tqdm(tilers.items(), desc=f"{scenario}: open", leave=False):
                try:
                    tiler = opener(subject, scenario, raster, folder)
                    stack.callback(tiler.close)
                    classes = tiler.map()
                except (BackendError, BundleError) as error:
                    left_out[f"{subject.name}: {name}, {precision}"] = str(error)
                    continue
                truth = classes if truth is None else truth
                row = ContestRow(
                    group="raster",
                    subject=subject,
                    scenario=scenario,
                    peer=name,
                    precision=precision,
                    library=tiler.library,
                    agreement=float((classes == truth).mean()),
                )
                contest.append((row, tiler))
            for row, tiler in in_turn(contest, rounds, f"{scenario}: raster"):
                row.raster_s.append(tiler.timed()[1])
            rows += [row for row, _ in contest]
    return rows
