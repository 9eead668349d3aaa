"""The backend on a real device without TensorRT; its emulated twin is ``tests/engine/test_tensorrt_smoke.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("options", [["--tiles", "200"], ["--provoke"], ["--raster", "--mpx", "4"]], ids=lambda o: o[0])
def test_the_smoke_test_passes(options: list[str]) -> None:
    command = [sys.executable, "-m", "tests.gpu.smoke", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
