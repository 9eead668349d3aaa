"""What a run that was stopped leaves, and whether what became of it is what an uninterrupted one makes."""

from __future__ import annotations

import csv
import filecmp
import json
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT
from engine.fleet.marker import Marker
from engine.journal import FOLDER
from engine.ownership import MARKER

_TEMPORARY = re.compile(r"\.(units\.csv|fleet\.json|fleet\.html|classes\.vrt)\.\d+")
"""Of the books of a list: other processes may write there too, so that nobody sweeps them up."""
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
    publisher: str = "raster"
    """What wrote."""


def complete(command: Sequence[str], output: Path, *more: str) -> int:
    """Run to the end; the exit code."""
    return subprocess.run([*command, "--output", str(output), *more], cwd=ROOT, check=False).returncode


def remains(output: Path) -> tuple[str, int | None]:
    """What a killed run left: nothing, an unfinished run with so many tiles in its journal, or a finished one."""
    try:
        return "unfinished", json.loads((output / FOLDER / "journal.json").read_bytes())["tiles_done"]
    except ValueError:
        return "unfinished", None
    except FileNotFoundError:
        return ("finished" if (output / "run.json").exists() else "nothing"), None


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs between two finished runs over a raster."""
    differences = [*unequal(whole, killed, SAME_BYTES), *_unequal_names(whole, killed)]
    if _untimed(whole / "tiles.csv") != _untimed(killed / "tiles.csv"):
        differences.append("tiles.csv")
    mine, other = (json.loads((folder / "run.json").read_text()) for folder in (killed, whole))
    differences += [f"{name} of run.json" for name in ("result", "health", "tiles_lost") if mine[name] != other[name]]
    if _item(whole / "item.json") != _item(killed / "item.json"):
        differences.append("item.json")
    return [f"{difference} differs" for difference in differences]


def compare_flights(whole: Path, killed: Path) -> list[str]:
    """What differs between two finished live runs."""
    differences = _unequal_names(whole, killed)
    for frame in (path for path in sorted(whole.iterdir()) if (path / MARKER).is_file() and path.name != FOLDER):
        differences += unequal(whole, killed, [f"{frame.name}/{name}" for name in SAME_BYTES])
        differences += [f"{frame.name}/{each}" for each in _unequal_names(frame, killed / frame.name)]
    logs = [[json.loads(line) for line in (each / "frames.jsonl").read_text().splitlines()] for each in (whole, killed)]
    told = [[{name: row[name] for name in row if not name.endswith("_ms")} for row in log] for log in logs]
    return [f"{each} differs" for each in (*differences, *(["frames.jsonl"] if told[0] != told[1] else []))]


def compare_lists(whole: Path, killed: Path) -> list[str]:
    """What differs between two lists that are mapped."""
    differences = [each for each in _unequal_names(whole, killed) if not _TEMPORARY.match(each)]
    for unit in (path for path in sorted(whole.iterdir()) if (path / "unit.json").is_file()):
        differences += [f"{unit.name}: {each}" for each in compare(unit, killed / unit.name)]
        marker = Marker.read((killed / unit.name / "unit.json").read_bytes())
        if marker is None or not marker.whole(killed / unit.name):
            differences.append(f"{unit.name}/unit.json")
    rows = [{row["unit"]: row["tiles_lost"] for row in _untimed(each / "units.csv")} for each in (whole, killed)]
    json.loads((killed / "fleet.json").read_bytes())
    return [*differences, *unequal(whole, killed, ["classes.vrt"]), *(["units.csv"] if rows[0] != rows[1] else [])]


def unequal(whole: Path, killed: Path, names: Iterable[str]) -> list[str]:
    """Which files are not the same to the last byte."""
    return [name for name in names if not filecmp.cmp(whole / name, killed / name, shallow=False)]


def _unequal_names(whole: Path, killed: Path) -> list[str]:
    """Names that only one of two folders holds."""
    names = [{path.name for path in each.iterdir()} - {".fleet"} for each in (whole, killed)]
    return [f"{name} (in one alone)" for name in sorted(names[0] ^ names[1])]


def _item(path: Path) -> Any:
    """But for when and where it was written."""
    item = json.loads(path.read_bytes())
    return {**item, "id": "", "properties": {**item["properties"], "created": "", "title": ""}}


def _untimed(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [{name: row[name] for name in row if not name.endswith("_ms")} for row in csv.DictReader(file)]


def show(kill: Kill) -> None:
    """One line on the terminal."""
    done = "" if kill.tiles_done is None else f", {kill.tiles_done} tiles in its journal"
    print(
        f"{kill.publisher} {kill.kill:>3}, run {kill.run:>3}{' (resumed)' if kill.resumed else '':<10} "
        f"after {kill.after_s:6.2f} s left {kill.left}{done}: {'equal' if kill.equal else 'DIFFERENT'}",
        flush=True,
    )
