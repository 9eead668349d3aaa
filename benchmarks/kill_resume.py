"""kill -9 at random moments, then --resume: are the maps those of a run that was never stopped?

    python -m benchmarks.kill_resume                          20 kills
    python -m benchmarks.kill_resume --kills 3 --tiles 60     a quick look
    python -m benchmarks.kill_resume --power-loss --kills 50 --tiles 36

The flight has stretches in which a sensor shows noise, so that what the health monitor remembers matters too. An
uninterrupted run comes first. Then a run is started and killed at a moment drawn from the whole of its duration, the
first import and the writing of the last file included, and resumed; every second resumed run is killed as well, until
all kills are spent. Where a kill comes before there is anything to resume, the run starts over.

With --power-loss not only the process dies: of what it did to the disk no more is left than a power cut may leave
(benchmarks/disk.py). A run is recorded call by call with strace, a checkpoint every half second; a moment is drawn from
its duration, or right behind one of its calls that change names or wait for the disk; what is safe by then is laid out
in a folder, with none or, in every second case, with some of the rest; and that is resumed. For the last fifth of the
moments the run that is recorded is itself one that went on from such a folder.

Compared are, byte for byte, the three maps and the quicklook; tiles.csv but for its times; what run.json says about the
maps and the sensors. One CSV row per kill. Exit codes: 0 all equal; 1 a difference, or a run that fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import RESULTS, exit_code_of, parser_of
from benchmarks.conditions import ROOT, conditions, write_csv
from benchmarks.disk import Disk, Tree
from benchmarks.rasters import Failure, columns_of, rows_of, write_flight
from benchmarks.recorded import Call, record
from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from engine.journal import FOLDER

LEAST_TILES = 36
"""So that no two failures lie side by side."""
SAME_BYTES = ("classes.tif", "confidence.tif", "provenance.tif", "quicklook.png")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL."""

    kill: int
    run: int
    """Runs count from 1; one run may be killed several times."""
    after_s: float
    """From the start of the process."""
    resumed: bool
    """The process that was killed had been resumed itself."""
    left: str
    """``nothing``, ``unfinished`` or ``finished``."""
    tiles_done: int | None
    """By the journal that it left."""
    equal: bool = False
    """The run in the end."""
    survives: str = "all"
    """``all`` that the process wrote; after a power cut ``synced``, or ``synced and some``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume, compare, write the CSV."""
    parser = parser_of("kill_resume", __doc__, result="kill_resume.csv")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how many (default: 20)")
    parser.add_argument("--tiles", type=int, default=240, metavar="N", help="of the flight, at least (default: 240)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--power-loss", action="store_true", help="the machine dies, not the process alone")
    options = parser.parse_args(arguments)
    if options.power_loss and options.out == RESULTS / "kill_resume.csv":
        options.out = RESULTS / "power_loss.csv"
    return exit_code_of(lambda: _measure(parser, options))


def _measure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.tiles < LEAST_TILES:
        parser.error(f"--tiles must be at least {LEAST_TILES}, received {options.tiles}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run under way ends too
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as name:
        folder = Path(name)
        command = command_for(folder, options.bundle, options.tiles)
        began = time.monotonic()
        if (code := complete(command, folder / "whole")) != 0:
            print(f"the uninterrupted run ended with exit code {code}", file=sys.stderr)
            return 1
        duration_s = time.monotonic() - began
        print(f"uninterrupted: {duration_s:.1f} s, journal every 5 s")
        kills: list[Kill] = []
        run, failed = 0, False
        if options.power_loss:
            failed = power_losses(command, folder, options.kills, chance, kills)
            run = options.kills
        while len(kills) < options.kills and not failed:
            run += 1
            first = len(kills)
            differences = interrupted_run(command, folder / "killed", kills, options.kills, run, duration_s, chance)
            differences = differences or compare(folder / "whole", folder / "killed")
            failed = bool(differences)
            for place in range(first, len(kills)):
                kills[place] = replace(kills[place], equal=not failed)
                show(kills[place])
            for difference in differences:
                print(f"run {run}: {difference}", file=sys.stderr)
    rows = [{**asdict(kill), "run_s": round(duration_s, 2), "tiles": options.tiles, **conditions()} for kill in kills]
    write_csv(options.out, rows)
    equal, left = sum(kill.equal for kill in kills), [kill.left for kill in kills]
    print(
        f"{equal} of {len(kills)} kills end in the bytes of the uninterrupted run; they left "
        + ", ".join(f"{what} {left.count(what)} times" for what in ("nothing", "unfinished", "finished"))
    )
    print(f"written: {options.out}")
    return 1 if failed else 0


def command_for(folder: Path, bundle: Path, tiles: int) -> list[str]:
    """The run, but for its output; its rasters are written into the folder."""
    columns = columns_of(tiles)
    failures = [
        Failure(sensor=Sensor.NDSM, tile_row=1, first_col=1, last_col=columns // 2),
        Failure(sensor=Sensor.RGIR, tile_row=3, first_col=columns // 3, last_col=columns // 2),
        Failure(sensor=Sensor.NDSM, tile_row=rows_of(tiles) - 1, first_col=0, last_col=1),
    ]
    paths = write_flight(folder, Bundle.load(bundle).manifest, tiles, failures=failures)
    inputs = [word for sensor, path in paths.items() for word in (f"--{sensor}", str(path))]
    return [sys.executable, "-m", "engine.run", *inputs, "--bundle", str(bundle.resolve()), "--quiet"]


def complete(command: Sequence[str], output: Path, *more: str) -> int:
    """Run to the end; the exit code."""
    return subprocess.run([*command, "--output", str(output), *more], cwd=ROOT, check=False).returncode


def interrupted_run(
    command: Sequence[str],
    output: Path,
    kills: list[Kill],
    most: int,
    run: int,
    duration_s: float,
    chance: random.Random,
) -> list[str]:
    """One run, killed and resumed until it ends; adds to ``kills``. Returns what went wrong."""
    shutil.rmtree(output, ignore_errors=True)
    option = "--overwrite"
    again = True
    while again and len(kills) < most:
        after_s = chance.uniform(0, duration_s)
        process = subprocess.Popen([*command, "--output", str(output), option], cwd=ROOT)
        try:
            code = process.wait(timeout=after_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        if code is not None:  # a resumed run is shorter
            return [] if code == 0 else [f"exit code {code}"]
        left, tiles_done = remains(output)
        kills.append(
            Kill(
                kill=len(kills) + 1,
                run=run,
                after_s=round(after_s, 2),
                resumed=option == "--resume",
                left=left,
                tiles_done=tiles_done,
            )
        )
        if left == "finished":
            return []
        option = "--resume" if left == "unfinished" else "--overwrite"
        again = chance.random() < 0.5
    code = complete(command, output, option)
    return [] if code == 0 else [f"exit code {code} after {option}"]


def power_losses(command: Sequence[str], folder: Path, most: int, chance: random.Random, kills: list[Kill]) -> bool:
    """Cut the power at so many moments of recorded runs; adds to ``kills``. Returns whether any ended otherwise."""
    disk, failed = folder / "disk", False
    beginning: Tree = {}
    for run, count in ((1, most - most // 5), (2, most // 5)):
        lay_out(beginning, disk)
        option = "--resume" if run == 2 else "--overwrite"
        code, calls = record(
            [*launched(command), "--output", str(disk / "map"), option], disk, folder / "log", cwd=ROOT
        )
        if code != 0:
            print(f"recorded run {run} ended with exit code {code}", file=sys.stderr)
            return True
        model, done = Disk(beginning), 0
        for call in calls:
            call.onto(model)
        if model.now() != tree_of(disk):
            print(f"recorded run {run} did to the disk what its recording does not tell", file=sys.stderr)
            return True
        model, unfinished = Disk(beginning), beginning
        for moment in sorted(moments(calls, count, chance)):
            for call in calls[done:moment]:
                call.onto(model)
            done, some = moment, len(kills) % 2 == 1
            left_on_disk = model.crashed(chance if some else None)
            lay_out(left_on_disk, disk)
            left, tiles_done = remains(disk / "map")
            if tiles_done and unfinished == beginning:
                unfinished = left_on_disk
            code = 0
            if left != "finished":
                code = complete(command, disk / "map", "--resume" if left == "unfinished" else "--overwrite")
            differences = [f"exit code {code}"] if code else compare(folder / "whole", disk / "map")
            kill = Kill(
                kill=len(kills) + 1,
                run=run,
                after_s=round(calls[moment - 1].at_s, 2),
                resumed=run == 2,
                left=left,
                tiles_done=tiles_done,
                equal=not differences,
                survives="synced and some" if some else "synced",
            )
            kills.append(kill)
            show(kill)
            for difference in differences:
                print(f"kill {kill.kill}: {difference}", file=sys.stderr)
            failed = failed or bool(differences)
        beginning = unfinished
    return failed


def launched(command: Sequence[str]) -> list[str]:
    """The command, with a checkpoint every half second: there are as many as in a long run."""
    code = "import sys; from engine import run, sink; sink.CHECKPOINT_S = 0.5; sys.exit(run.main(sys.argv[1:]))"
    return [command[0], "-c", code, *command[3:]]


def moments(calls: Sequence[Call], count: int, chance: random.Random) -> list[int]:
    """How many calls are done when the power is cut: half of them by the clock, half behind a call that matters."""
    times = [call.at_s for call in calls]
    weighty = [number for number, call in enumerate(calls, start=1) if call.method not in ("write", "copy")]
    drawn = [max(1, bisect(times, chance.uniform(0, times[-1]))) for _ in range(count // 2)]
    return [*drawn, *(chance.choice(weighty) for _ in range(count - len(drawn)))]


def lay_out(tree: Tree, folder: Path) -> None:
    """Make a folder hold a tree and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def tree_of(folder: Path) -> Tree:
    """What a folder holds."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }


def remains(output: Path) -> tuple[str, int | None]:
    """What a killed run left: nothing, an unfinished run with so many tiles in its journal, or a finished one."""
    try:
        return "unfinished", json.loads((output / FOLDER / "journal.json").read_bytes())["tiles_done"]
    except ValueError:
        return "unfinished", None
    except FileNotFoundError:
        return ("finished" if (output / "run.json").exists() else "nothing"), None


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs between two finished runs."""
    differences = [name for name in SAME_BYTES if (whole / name).read_bytes() != (killed / name).read_bytes()]
    if _untimed(whole / "tiles.csv") != _untimed(killed / "tiles.csv"):
        differences.append("tiles.csv")
    mine, other = (json.loads((folder / "run.json").read_text()) for folder in (killed, whole))
    differences += [f"{name} of run.json" for name in ("result", "health", "tiles_lost") if mine[name] != other[name]]
    differences += [f"{FOLDER} is still there"] if (killed / FOLDER).exists() else []
    return [f"{difference} differs" for difference in differences]


def _untimed(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [{name: row[name] for name in row if not name.endswith("_ms")} for row in csv.DictReader(file)]


def show(kill: Kill) -> None:
    """One line on the terminal."""
    done = "" if kill.tiles_done is None else f", {kill.tiles_done} tiles in its journal"
    print(
        f"kill {kill.kill:>3}, run {kill.run:>3}{' (resumed)' if kill.resumed else '':<10} after {kill.after_s:6.2f} s "
        f"left {kill.left}{done}: {'equal' if kill.equal else 'DIFFERENT'}",
        flush=True,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
