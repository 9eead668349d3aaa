"""What a signal does to a run: see interrupt_cases.py, which runs alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("interrupt_cases.py")


def test_signals_in_a_process_that_no_other_test_has_touched() -> None:
    """Other tests leave signal handlers and native libraries behind; a signal at every line does not bear them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=CASES.parent.parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout
