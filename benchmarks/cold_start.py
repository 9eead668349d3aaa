"""From nothing to the first result: a new process that imports, opens the bundle, compiles, checks and infers a tile.

Files come from the operating system's cache: what a start after a reboot waits for the disk is not in it. The process
is this module, run as ``python -m benchmarks.cold_start REQUEST`` by :func:`cold_start`, which is what others call.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STAGES = ("interpreter", "import", "bundle", "compile", "golden", "first_tile")
"""Python itself; numpy, rasterio, the engine and the inference library; the manifest and its hashes; three graphs;
the golden tile through each of them; one tile of scenario ``full``."""


def cold_start(request: Mapping[str, Any], remembered: str = "") -> dict[str, float]:
    """Milliseconds of each of :data:`STAGES` in one new process.

    Args:
        remembered: folder of what earlier starts found out (:mod:`engine.backends.remembered`); empty: nothing.
        request: ``backend``, ``precision``, ``bundle``, ``threads``, ``hint`` and ``plans`` as
            :class:`engine.backends.options.BackendOptions` takes them, paths as text.

    Raises:
        BackendError: the process failed; its last line says why.
    """
    from engine.contract.errors import BackendError

    command = [sys.executable, "-m", "benchmarks.cold_start", json.dumps(dict(request))]
    started = time.monotonic()
    environment = {**os.environ, "GEMMNET_CACHE": remembered}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BackendError(f"a new process with {request['backend']} did not come to a first result: {reason}")
    stamps = [started, *json.loads(done.stdout.splitlines()[-1])]  # CLOCK_MONOTONIC is the same in all processes
    return {stage: (stamps[i + 1] - stamps[i]) * 1e3 for i, stage in enumerate(STAGES)}


def cold_starts(request: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float] | None]:
    """Without what an earlier start has kept, and with it; None where a backend keeps nothing.

    OpenVINO keeps compiled graphs and that the golden tiles were reproduced, in a folder of the measurement's own;
    TensorRT-RTX compiled kernels beside its plans, of which a copy is used.
    """
    if request["backend"] == "openvino":
        with tempfile.TemporaryDirectory(prefix="remembered-") as folder:
            return cold_start(request, folder), cold_start(request, folder)
    if request["backend"] != "tensorrt":
        return cold_start(request), None
    from engine.backends.tensorrt_engine import CACHE_SUFFIX

    with tempfile.TemporaryDirectory(prefix="plans-") as folder:
        plans = Path(folder) / "plans"
        shutil.copytree(request["plans"], plans, ignore=shutil.ignore_patterns(f"*{CACHE_SUFFIX}"))
        first = cold_start({**request, "plans": str(plans)})
        kept = any(plans.glob(f"*{CACHE_SUFFIX}"))
        return first, cold_start({**request, "plans": str(plans)}) if kept else None


def _start(request: Mapping[str, Any]) -> list[float]:
    """The moments at which the stages end, by the monotonic clock."""
    stamps = [time.monotonic()]
    import importlib

    import numpy as np

    from engine.backends import options
    from engine.backends.base import Output
    from engine.backends.options import BackendOptions
    from engine.backends.remembered import Remembered
    from engine.contract.bundle import Bundle
    from engine.contract.sensors import Scenario

    for name in ("engine.runner", f"engine.backends.{request['backend']}"):  # what a run imports: rasterio too
        importlib.import_module(name)
    stamps.append(time.monotonic())
    bundle = Bundle.load(Path(request["bundle"]))
    stamps.append(time.monotonic())
    before = len(stamps)
    check = options.check_golden_tile  # type: ignore[attr-defined]

    def check_golden_tile(*arguments: Any, **named: Any) -> None:
        stamps.append(time.monotonic())
        check(*arguments, **named)
        stamps.append(time.monotonic())

    # a backend is compiled, then this is called: no other moment is between
    options.check_golden_tile = check_golden_tile  # type: ignore[attr-defined]
    manifest = bundle.manifest
    with ExitStack() as stack:
        opened = BackendOptions(
            name=request["backend"],
            precision=request["precision"],
            threads=request["threads"],
            hint=request["hint"],
            plans=None if request["plans"] is None else Path(request["plans"]),
        ).open(bundle, scenarios=Scenario, wanted=(Output.CLASSES, Output.CONFIDENCE), remembered=Remembered.here())
        if len(stamps) == before:  # nothing was checked, for it has been before
            stamps += [time.monotonic()] * 2
        stack.enter_context(opened)
        specs = [manifest.sensor(sensor) for sensor in Scenario.FULL.sensors]
        side = manifest.tile_px
        tile = {spec.sensor: np.ones((len(spec.bands), side, side), spec.dtype) for spec in specs}
        opened.infer(Scenario.FULL, tile)
        stamps.append(time.monotonic())
    return stamps


if __name__ == "__main__":
    print(json.dumps(_start(json.loads(sys.argv[1]))))
