"""What every row of a result says about how it came about."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from engine.doctor.host import own_version

ROOT = Path(__file__).parent.parent


def conditions() -> dict[str, object]:
    """Software, cores, commit and date."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "package": own_version(),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """One line per row, columns of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
