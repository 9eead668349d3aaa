"""A fleet on a real Ray node: the maps of lone runs, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine import run as command
from engine.contract.bundle import Bundle
from tests.conftest import make_scene

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'gemmnet-edge[fleet]'")
STARTS_WITHIN_S = 90
MAPS = ("classes.tif", "confidence.tif", "provenance.tif")


@pytest.mark.slow
def test_units_on_ray_are_those_of_one_process_and_each_is_mapped_once_though_a_worker_is_killed(
    toy_bundle: Bundle, write_scene, tmp_path: Path
) -> None:
    lines = ["rgir,ndsm"]
    for seed in range(12):
        paths = write_scene(make_scene(260, 330, seed=seed), f"scene{seed}")
        lines.append(",".join(map(str, paths.values())))
    large = write_scene(make_scene(700, 330, seed=99), "large")  # three blocks
    lines.append(",".join(map(str, large.values())))
    lines.append("gone.tif,")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    model = ["--list", str(tmp_path / "pairs.csv"), "--bundle", str(toy_bundle.root), "--precision", "fp32"]
    assert command.main([*model, "--output", str(tmp_path / "alone"), "--quiet"]) == 9

    output = tmp_path / "fleet"
    fleet = [
        sys.executable,
        "-m",
        "engine.fleet",
        *model,
        "--output",
        str(output),
        "--cpus",
        "1",
        "--cut",
        "0.1",
        "--json",
    ]
    environment = {**os.environ, "RAY_DISABLE_IMPORT_WARNING": "1"}
    with subprocess.Popen(fleet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        killed, begun = None, False
        waiting = threading.Timer(STARTS_WITHIN_S, running.kill)
        waiting.start()
        for line in running.stdout:
            waiting.cancel()
            told, begun = json.loads(line), True
            if killed is None and told["event"] == "unit" and told["state"] == "mapped":
                killed = json.loads((output / told["unit"] / "unit.json").read_text())["worker"]
                os.kill(int(killed.rpartition(":")[2]), signal.SIGKILL)
        errors = running.stderr.read() if running.stderr else ""
    waiting.cancel()
    if not begun and running.returncode == -signal.SIGKILL:
        pytest.skip(f"Ray does not start on this machine within {STARTS_WITHIN_S} s")
    assert running.returncode == 9, errors
    assert killed is not None
    told = json.loads((output / "fleet.json").read_text())
    assert told["states"] == {"mapped": 13, "there": 0, "failed": 1}
    assert set(told["workers"]) - {killed}
    assert not (output / ".fleet" / "blocks").exists() or not list((output / ".fleet" / "blocks").iterdir())
    for unit in (*(f"scene{seed}" for seed in range(12)), "large"):
        for name in MAPS:
            mine, theirs = (tmp_path / each / unit / name for each in ("fleet", "alone"))
            assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_node_of_another_version_is_refused_with_both_versions(
    toy_bundle: Bundle, write_scene, tmp_path: Path
) -> None:
    rgir, _ = write_scene(make_scene(70, 90, seed=1), "scene").values()
    (tmp_path / "list.csv").write_text(f"rgir\n{rgir}\n")
    program = (
        "import sys; from engine.fleet import cluster; from engine.fleet.__main__ import main\n"
        "cluster.own_version = lambda: '9.9.9'  # of the driver alone: workers are other processes\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--list", tmp_path / "list.csv", "--bundle", toy_bundle.root, "--output", tmp_path / "maps", "--quiet"]
    command = [sys.executable, "-c", program, *map(str, options)]
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=STARTS_WITHIN_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"Ray does not start on this machine within {STARTS_WITHIN_S} s")
    assert ended.returncode == 6, ended.stderr
    told = ended.stderr.splitlines()[-1]
    assert told.startswith("error: no node can map: node ")
    assert "the driver 9.9.9: install the same" in told
    assert not (tmp_path / "maps" / "scene").exists()
