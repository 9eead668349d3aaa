"""Result files as they lie in ``benchmarks/results``: rows, and under which conditions they came about."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT
from engine.contract.errors import UsageError

RESULTS = ROOT / "benchmarks" / "results"

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One file. A JSON file is a single document; a CSV file has rows, every value a string."""

    file: str
    rows: Sequence[Row] = ()
    document: Mapping[str, Any]
    """Of a CSV file: its first row."""
    command: str
    """As it was typed, or as it would be by default where the file does not say."""

    def conditions(self, folder: str) -> str:
        """One line: command, file, machine, versions, commit and date, as far as the file says.

        Args:
            folder: of the results, as a link on the page names it.
        """
        document = self.document
        machine = document.get("processor") or document.get("device") or document.get("cpu")
        if document.get("features"):
            machine = f"{machine} ({document['features']})"
        cores, memory = document.get("cores"), document.get("memory_gib")
        load = document.get("load_at_start") or max((one["load"] for one in document.get("timings", ())), default=None)
        told = [
            machine,
            f"{cores} cores" if cores else None,
            f"{float(memory):.0f} GiB" if memory else None,
            f"load average {float(load):.1f}" if load else None,
            self._libraries(),
            f"commit {document['commit']}" if document.get("commit") else None,
            document.get("date") or str(document.get("created_utc", ""))[:10],
        ]
        facts = ", ".join(str(fact) for fact in told if fact)
        return f"From `{self.command}` ([{self.file}]({folder}/{self.file})){f': {facts}' if facts else ''}."

    def _libraries(self) -> str | None:
        """The inference libraries; versions of everything else stand in the file."""
        document = self.document
        if document.get("libraries"):
            named = [one.strip() for one in str(document["libraries"]).split(";")]
            return ", ".join(one for one in named if one.split(" ")[0] not in ("numpy", "rasterio", "pycuda"))
        if "tools" in document:
            return ", ".join(f"{n.split('/')[-1]} {v}" for n, v in document["tools"].items() if "openvino" in n)
        named = {row.get("library") or row.get("backend") or "" for row in self.rows}
        return ", ".join(sorted(name for name in named if " " in name))


def load(results: Path, file: str, command: str) -> Result:
    """Read a result.

    Args:
        results: folder.
        file: name, ``.csv`` or ``.json``; a CSV's first line may be ``# command``.
        command: the one that makes it.

    Raises:
        UsageError: it is not there, or it is empty.
    """
    path = results / file
    if not path.is_file():
        raise UsageError(f"{path} must be there before its table can be written: run `{command}`")
    text = path.read_text()
    if path.suffix == ".json":
        document = json.loads(text)
        return Result(file=file, document=document, command=document.get("command", command))
    lines = text.splitlines()
    if lines and lines[0].startswith("# "):
        command = lines.pop(0).removeprefix("# ")
    rows = list(csv.DictReader(lines))
    if not rows:
        raise UsageError(f"{path} must have at least one row, received none: run `{command}` again")
    return Result(file=file, rows=rows, document=rows[0], command=rows[0].get("command") or command)
