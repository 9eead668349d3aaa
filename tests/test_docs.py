"""The pages of ``docs/`` become a site in which every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from engine.contract.health import AuditLimits, ColourLimits, GroundLimits, HealthLimits
from engine.health.verdict import Fault

ROOT = Path(__file__).parent.parent


def test_the_pages_build_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'id="engine.contract.errors' in (tmp_path / "api" / "index.html").read_text()
    assert (tmp_path / "benchmarks" / "results" / "latency.csv").exists()


def test_the_table_of_rules_names_every_limit_and_every_fault() -> None:
    text = (ROOT / "docs" / "rules.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    named = set(re.findall(r"`([a-z_]+)`", text))
    limits = {each.name for kind in (HealthLimits, ColourLimits, GroundLimits, AuditLimits) for each in fields(kind)}
    assert limits - {"colours", "ground"} <= named
    assert set(Fault) == {fault for row in rows for fault in re.findall(r"`([a-z_]+)`", row.split("|")[-2])}
    in_columns = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[3])}
    assert in_columns <= limits
