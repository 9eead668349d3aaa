"""A run whose standard streams are closed, full or gone ends as any other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.contract.bundle import Bundle
from engine.contract.sensors import Sensor
from tests.conftest import Scene, make_scene

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="there is no full device here")
@pytest.mark.parametrize(
    ("redirection", "options"),
    [
        (">&- 2>&-", ""),
        ("<&- >&- 2>&-", "--json --report"),
        ("2>/dev/full", ""),
        (">/dev/full", "--json"),
        (">/dev/full 2>/dev/full", "--log-format json --report"),
        ("| true", "--json"),
    ],
)
def test_a_stream_that_takes_nothing_costs_no_map(
    redirection: str,
    options: str,
    toy_bundle: Bundle,
    write_scene: Callable[[Scene], dict[Sensor, Path]],
    tmp_path: Path,
) -> None:
    paths, output = write_scene(make_scene(150, 200)), tmp_path / "out"
    command = (
        f"{sys.executable} -m engine.run --bundle {toy_bundle.root} --backend onnxruntime --rgir {paths[Sensor.RGIR]} "
        f"--ndsm {paths[Sensor.NDSM]} --output {output} {options} {redirection}"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (output / "run.json").exists()
    assert not (output / ".unfinished").exists()


@pytest.mark.skipif(not FULL.exists(), reason="there is no full device here")
def test_an_error_that_cannot_be_told_keeps_its_code(toy_bundle: Bundle, tmp_path: Path) -> None:
    for redirection in (">&- 2>&-", ">/dev/full 2>/dev/full"):
        command = f"{sys.executable} -m engine.run --bundle {toy_bundle.root} --rgir {tmp_path}/none.tif {redirection}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False, timeout=120)
        assert done.returncode == 3
