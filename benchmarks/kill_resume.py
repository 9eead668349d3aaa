"""kill -9 at random moments, then --resume: are the maps those of a run that was never stopped?

    python -m benchmarks.kill_resume                          20 kills
    python -m benchmarks.kill_resume --kills 3 --tiles 60     a quick look
    python -m benchmarks.kill_resume --power-loss --kills 50 --tiles 36

The flight has stretches in which a sensor shows noise, so that what the health monitor remembers matters too. An
uninterrupted run comes first. Then a run is started and killed at a moment drawn from the whole of its duration, the
first import and the writing of the last file included, and resumed; every second resumed run is killed as well, until
all kills are spent. Where a kill comes before there is anything to resume, the run starts over.

With --power-loss not only the process dies: of what it did to the disk no more is left than a power cut may leave
(benchmarks/disk.py): of a raster's run, of a live flight, of polygons and STAC items that are made of finished maps, of
a list of rasters. A run is recorded call by call with strace, a checkpoint every half second; a moment is drawn from
its duration, or right behind one of its calls that change names or wait for the disk; what is safe by then is laid out
in a folder, with none or, in every second case, with some of the rest; and that is resumed. For the last fifth of the
moments the run that is recorded is itself one that went on from such a folder.

Compared are, byte for byte, the three maps and the quicklook; tiles.csv but for its times; what run.json says about the
maps and the sensors. One CSV row per kill. Exit codes: 0 all equal; 1 a difference, or a run that fails.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.command import RESULTS, exit_code_of, parser_of
from benchmarks.conditions import ROOT, conditions, write_csv
from benchmarks.power_cuts import power_losses, publishers
from benchmarks.rasters import Failure, columns_of, rows_of, write_flight
from benchmarks.stopped import Kill, compare, complete, remains, show
from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor

LEAST_TILES = 36
"""So that no two failures lie side by side."""
PUBLISHERS = ("raster", "live", "polygons", "stac", "list")


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume, compare, write the CSV."""
    parser = parser_of("kill_resume", __doc__, result="kill_resume.csv")
    parser.add_argument(
        "--kills",
        type=int,
        default=20,
        metavar="N",
        help="how many (default: 20); a quarter of each thing but a raster",
    )
    parser.add_argument("--tiles", type=int, default=240, metavar="N", help="of the flight, at least (default: 240)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--power-loss", action="store_true", help="the machine dies, not the process alone")
    parser.add_argument(
        "--publishers",
        default=",".join(PUBLISHERS),
        metavar="NAMES",
        help="while what is written the power is cut (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.power_loss and options.out == RESULTS / "kill_resume.csv":
        options.out = RESULTS / "power_loss.csv"
    return exit_code_of(lambda: _measure(parser, options))


def _measure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    names = options.publishers.split(",")
    if unknown := [name for name in names if name not in PUBLISHERS]:
        parser.error(f"--publishers takes {', '.join(PUBLISHERS)}, received {', '.join(unknown)}")
    if options.tiles < LEAST_TILES:
        parser.error(f"--tiles must be at least {LEAST_TILES}, received {options.tiles}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run under way ends too
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as name:
        folder = Path(name)
        command = command_for(folder, options.bundle, options.tiles)
        began = time.monotonic()
        if (code := complete(command, folder / "raster")) != 0:
            print(f"the uninterrupted run ended with exit code {code}", file=sys.stderr)
            return 1
        duration_s = time.monotonic() - began
        print(f"uninterrupted: {duration_s:.1f} s, journal every 5 s")
        kills: list[Kill] = []
        run, failed = 0, False
        if options.power_loss:
            # in the order in which some need the results of others
            for each in publishers([name for name in PUBLISHERS if name in names], folder, options.bundle, command):
                most = options.kills if each.name == "raster" else -(-options.kills // 4)
                failed = power_losses(each, folder, most, chance, kills) or failed
        while len(kills) < options.kills and not failed:
            run += 1
            first = len(kills)
            differences = interrupted_run(command, folder / "killed", kills, options.kills, run, duration_s, chance)
            differences = differences or compare(folder / "raster", folder / "killed")
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
