"""The power is cut while something is written: what is left is repeated, and must end as if nothing had happened.

Part of :mod:`benchmarks.kill_resume`.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.conditions import ROOT
from benchmarks.disk import Disk, Tree
from benchmarks.rasters import write_flight, write_frames
from benchmarks.recorded import Call, record
from benchmarks.stopped import Kill, compare, compare_flights, compare_lists, remains, show, unequal
from engine.contract.bundle import Bundle
from engine.contract.errors import ResumeError

FRAMES = 5
UNITS = 3
IDLE_S = 0.5
CHANGED_S = 1_767_225_600
DAY = "OGR_CURRENT_DATE=2026-01-01T00:00:00Z"
"""What GDAL writes into a GeoPackage as the time of its last change."""


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Something that writes results."""

    name: str
    command: Sequence[str]
    """Without what it writes to, and the same again after a power cut."""
    fresh: tuple[str, ...] = ()
    """More words where nothing is left to go on from."""
    again: tuple[str, ...] = ()
    """More words where something is."""
    compare: Callable[[Path, Path], list[str]]
    """What differs between the folder that was never stopped and another."""
    beginning: Tree = field(default_factory=dict)
    """What its folder holds before."""
    whole: tuple[str, ...] = ()
    """Names of files that are there whole or not at all, at any moment; with all of them it is done."""
    to: tuple[str, ...] = ("--output",)
    """What comes before the name of its folder."""
    finished: int = 0
    """Exit code where it is repeated though nothing is left to do."""

    def words(self, output: Path, *more: str) -> list[str]:
        """The whole command."""
        return [*self.command, *self.to, str(output), *more]

    def run(self, output: Path, *more: str) -> int:
        """Run to the end; the exit code."""
        done = subprocess.run(self.words(output, *more), cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        return done.returncode


def publishers(names: Sequence[str], folder: Path, bundle: Path, raster: Sequence[str]) -> list[Publisher]:
    """Those that are asked for, each with its result in ``folder``, made without a stop.

    Args:
        names: of them.
        folder: for what is made.
        bundle: the model.
        raster: the command that maps a raster, whose result is ``folder / "raster"``.

    Raises:
        RuntimeError: one of them fails without any power cut.
    """
    found = []
    for name in names:
        if name == "raster":
            each = Publisher(
                name=name,
                command=raster,
                fresh=("--overwrite",),
                again=("--resume",),
                compare=compare,
                finished=ResumeError.exit_code,
            )
        elif name == "live":
            each = _live(folder, bundle)
        elif name == "list":
            each = _list(folder, bundle)
        elif name == "polygons":
            files = ["polygons.gpkg", "polygons.qml"]
            each = _derived(name, ["engine.polygons", "--overwrite"], folder / "raster", files)
        else:
            items = [f"{place.name}/item.json" for place in sorted((folder / "live").glob("0*"))]
            each = _derived(name, ["engine.stac"], folder / "live", items)
        whole = folder / name
        if not whole.exists():
            lay_out(each.beginning, whole)
            if (code := each.run(whole, *each.fresh)) != 0:
                raise RuntimeError(f"{name} ended with exit code {code}")
        found.append(each)
    return found


def _engine(bundle: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "engine.run", *words, "--bundle", str(bundle.resolve()), "--quiet"]


def _live(folder: Path, bundle: Path) -> Publisher:
    """A flight of a few frames of one tile each; its command is the same from the beginning."""
    landing = folder / "landing"
    landing.mkdir()
    for number, frame in enumerate(write_frames(folder, Bundle.load(bundle).manifest, FRAMES)):
        for sensor, path in frame.items():
            path.rename(landing / f"{sensor}_{number:04d}.tif")
    command = _engine(bundle, "--live", str(landing), "--idle-exit", str(IDLE_S), "--resume")
    return Publisher(name="live", command=command, compare=compare_flights)


def _list(folder: Path, bundle: Path) -> Publisher:
    """A few rasters of four tiles each."""
    rasters = folder / "units"
    with (folder / "units.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "rgir", "ndsm"])
        for number in range(UNITS):
            place = rasters / f"unit{number}"
            place.mkdir(parents=True)
            paths = write_flight(place, Bundle.load(bundle).manifest, 4)
            rows.writerow([place.name, *(str(paths[sensor]) for sensor in sorted(paths, reverse=True))])
    command = _engine(bundle, "--list", str(folder / "units.csv"))
    return Publisher(name="list", command=command, compare=compare_lists)


def _derived(name: str, module: Sequence[str], source: Path, made: Sequence[str]) -> Publisher:
    """A command that adds files to finished results."""
    beginning = {path: content for path, content in tree_of(source).items() if path not in made}
    command = ["env", DAY, sys.executable, "-m", *module]

    def differences(whole: Path, killed: Path) -> list[str]:
        return unequal(whole, killed, made)

    return Publisher(name=name, command=command, compare=differences, beginning=beginning, whole=tuple(made), to=())


def power_losses(publisher: Publisher, folder: Path, most: int, chance: random.Random, kills: list[Kill]) -> bool:
    """Cut the power at so many moments of recorded runs; adds to ``kills``. Returns whether any ended otherwise."""
    disk, whole, failed, first = folder / "disk", folder / publisher.name, False, len(kills)
    beginning = _below("map", publisher.beginning)
    for run, count in ((1, most - most // 5), (2, most // 5)):
        lay_out(beginning, disk)
        more = publisher.again if run == 2 else publisher.fresh
        command = _often(publisher.words(disk / "map", *more))
        code, calls = record(command, disk, folder / "log", cwd=ROOT)
        if code != 0:
            print(f"{publisher.name}: recorded run {run} ended with exit code {code}", file=sys.stderr)
            return True
        model, done = Disk(beginning), 0
        for call in calls:
            call.onto(model)
        if model.now() != tree_of(disk):
            print(f"recorded run {run} did to the disk what its recording does not tell", file=sys.stderr)
            return True
        model, unfinished = Disk(beginning), beginning
        for moment in sorted(_moments(calls, count, chance)):
            for call in calls[done:moment]:
                call.onto(model)
            done, some = moment, len(kills) % 2 == 1
            left_on_disk = model.crashed(chance if some else None)
            lay_out(left_on_disk, disk)
            left, tiles_done = remains(disk / "map")
            if tiles_done and unfinished == beginning:
                unfinished = left_on_disk
            kill = Kill(
                kill=len(kills) + 1 - first,
                run=run,
                after_s=round(calls[moment - 1].at_s, 2),
                resumed=run == 2,
                left=left,
                tiles_done=tiles_done,
                survives="synced and some" if some else "synced",
                publisher=publisher.name,
            )
            differences = _repeated(publisher, disk / "map", whole, left)
            kills.append(replace(kill, equal=not differences))
            show(kills[-1])
            for difference in differences:
                print(f"{publisher.name} {kill.kill}: {difference}", file=sys.stderr)
            failed = failed or bool(differences)
        beginning = unfinished
    return failed


def _repeated(publisher: Publisher, output: Path, whole: Path, left: str) -> list[str]:
    """Repeat the command on what is left; returns what is wrong then."""
    there = [name for name in publisher.whole if (output / name).exists()]
    if torn := unequal(whole, output, there):
        return [f"{name} is torn" for name in torn]
    if publisher.whole and len(there) == len(publisher.whole):
        return []
    expected = publisher.finished if left == "finished" else 0
    code = publisher.run(output, *(publisher.fresh if left == "nothing" else publisher.again))
    if code != expected:
        return [f"exit code {code}"]
    with suppress(FileNotFoundError):
        return publisher.compare(whole, output)
    return ["a file is missing"]


def _often(command: list[str]) -> list[str]:
    """The command, with a checkpoint every half second: there are as many as in a long run."""
    if "engine.run" not in command:
        return command
    code = "import sys; from engine import run, sink; sink.CHECKPOINT_S = 0.5; sys.exit(run.main(sys.argv[1:]))"
    return [command[0], "-c", code, *command[3:]]


def _moments(calls: Sequence[Call], count: int, chance: random.Random) -> list[int]:
    """How many calls are done when the power is cut: half of them by the clock, half behind a call that matters."""
    times = [call.at_s for call in calls]
    weighty = [number for number, call in enumerate(calls, start=1) if call.method not in ("write", "copy")]
    drawn = [max(1, bisect(times, chance.uniform(0, times[-1]))) for _ in range(count // 2)]
    return [*drawn, *(chance.choice(weighty) for _ in range(count - len(drawn)))]


def lay_out(tree: Tree, folder: Path) -> None:
    """Make a folder hold a tree and nothing else; every file was last changed at the same time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
            os.utime(folder / path, (CHANGED_S, CHANGED_S))


def tree_of(folder: Path) -> Tree:
    """What a folder holds."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }


def _below(name: str, tree: Tree) -> Tree:
    """A tree in a folder; nothing where there is none."""
    return {name: None, **{f"{name}/{path}": content for path, content in tree.items()}} if tree else {}
