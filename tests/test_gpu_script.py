"""The script for a GPU machine without a network, as far as it goes without a GPU: joining what was carried."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "gpu" / "run.sh"
NAME = "carried-1.0-py3-none-any.whl"
PART_BYTES = 3000


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), "--wheels", str(folder), "--out", str(folder.parent / "out")]
    command += ["--work", str(folder.parent / "work"), "--python", sys.executable, "--dry-run", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with one wheel of incompressible content, in parts."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    whole = tmp_path / NAME
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("carried/data", np.random.default_rng(0).bytes(10_000))
    content = whole.read_bytes()
    for index, start in enumerate(range(0, len(content), PART_BYTES)):
        (folder / f"{NAME}.part-a{'abcdefgh'[index]}").write_bytes(content[start : start + PART_BYTES])
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {NAME}\n")
    return folder


def test_parts_are_joined_and_the_rest_is_only_printed(wheels: Path) -> None:
    done = run(wheels)
    assert done.returncode == 0, done.stderr
    joined = wheels.parent / "work" / "carried" / NAME
    assert joined.read_bytes() == (wheels.parent / NAME).read_bytes()
    assert f"joined {NAME} from 4 parts" in done.stdout
    for planned in (
        *("--no-index", "smoke --device", "smoke --tiles 600", "memcheck", "smoke --provoke", "export.build"),
        *("pytest tests/gpu -m gpu", "agreement.csv", "benchmarks.latency", "benchmarks.peers", "smoke --raster"),
    ):
        assert planned in done.stdout
    assert not any((wheels.parent / "out").iterdir())
    assert not (wheels.parent / "work" / "site").exists()


def test_whole_wheels_pass_as_they_are(wheels: Path) -> None:
    for part in wheels.glob("*.part-*"):
        part.unlink()
    shutil.copy(wheels.parent / NAME, wheels)
    assert run(wheels).returncode == 0


@pytest.mark.parametrize("missing", ["b", "d"])
@pytest.mark.parametrize("sums", [True, False], ids=["with sums", "without sums"])
def test_a_missing_part_is_noticed(wheels: Path, missing: str, sums: bool) -> None:
    (wheels / f"{NAME}.part-a{missing}").unlink()
    if not sums:
        (wheels / "SHA256SUMS").unlink()
    done = run(wheels)
    assert done.returncode == 3
    assert ("carry the files above again" if sums else "a part is missing or damaged") in done.stderr


def test_a_missing_first_part_is_named(wheels: Path) -> None:
    (wheels / f"{NAME}.part-aa").unlink()
    done = run(wheels)
    assert done.returncode == 3
    assert "has no first part" in done.stderr


def test_damage_is_noticed_by_its_sum(wheels: Path) -> None:
    part = wheels / f"{NAME}.part-ab"
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    assert run(wheels).returncode == 3


def test_pycuda_is_built_from_its_source_without_curand(wheels: Path) -> None:
    (wheels / "pycuda-2026.1.tar.gz").touch()
    done = run(wheels)
    assert done.returncode == 0, done.stderr
    assert "configure.py" in done.stdout
    assert "--no-cuda-enable-curand" in done.stdout
    assert "--no-build-isolation" in done.stdout


FAKE_PYTHON = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
case " $* " in
    *" - "*) [ -n "$ENGINES" ] || { echo 'no TensorRT library'; exit 1; } ;;
    *"$FAILS"*) exit 1 ;;
esac
"""


def staged(folder: Path, *options: str, fails: str = "nothing", engines: str = "") -> tuple[str, int, list[str]]:
    """What a run on a machine with another Python prints, its exit code, and the commands it ran."""
    python = folder / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    done = subprocess.run(
        ["bash", str(SCRIPT), "--out", str(folder / "out"), "--python", str(python), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "CALLS": str(calls), "FAILS": fails, "ENGINES": engines},
    )
    return done.stdout, done.returncode, calls.read_text().splitlines()


def test_a_stage_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    told, code, calls = staged(tmp_path, fails="--provoke", engines="all")
    assert code == 1
    assert "c  a provoked error 700 costs no tile: failed" in told
    assert "f  how many tiles a second reading and writing allow: passed" in told
    assert any("smoke --raster" in call for call in calls)
    assert any("pytest tests/gpu" in call for call in calls)
    assert (tmp_path / "out" / "run.log").read_text() == told


def test_what_the_machine_lacks_is_left_out_and_named(tmp_path: Path) -> None:
    told, code, calls = staged(tmp_path)
    assert code == 0
    assert "d  real engines give the map of ONNX Runtime: left out: no TensorRT library" in told
    assert not any("export.build" in call for call in calls)


def test_single_stages_can_be_run(tmp_path: Path) -> None:
    told, code, calls = staged(tmp_path, "--stages", "a,f")
    assert (code, len(calls)) == (0, 2)
    assert "=== b" not in told


@pytest.mark.parametrize(("options", "code"), [(("--wheel", "x"), 2), (("--out",), 2), (("--stages", "a,g"), 2)])
def test_wrong_options_are_refused(wheels: Path, options: tuple[str, ...], code: int) -> None:
    assert run(wheels, *options).returncode == code


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere").returncode == 3


def test_the_script_is_executable_and_explains_itself() -> None:
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "--dry-run" in done.stdout
    assert "set -e" not in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
