"""What every row of a result says about how it came about, and how a result is written."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.contract.atomic import replacing
from engine.contract.errors import writing
from engine.doctor.host import examine_host
from engine.version import own_version

ROOT = Path(__file__).parent.parent
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "rasterio": ("rasterio",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "torch": ("torch",),
    "monai": ("monai",),
    "geoai": ("geoai-py",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx"),
    "pycuda": ("pycuda",),
}
"""Modules whose version is told where they have been imported, and the packages that bring them."""
_LOAD_AT_START = os.getloadavg()[0]
"""Runnable processes, mean of the minute before this process measured anything."""


def conditions(*libraries: str) -> dict[str, object]:
    """Machine, software, commit, command and date, as the last columns of a row: ``{**row, **conditions()}``.

    No name is one that a measurement uses for itself; ``threads`` and ``precision`` are the row's. What the kernel does
    not tell is empty. ``clock_mhz`` is read when this is first called, with the processor warm.

    Args:
        libraries: modules used by other processes of the measurement; those imported here are known.
    """
    used = [name for name in LIBRARIES if name in sys.modules or name in libraries]
    return {
        **_machine(),
        "load_at_start": round(_LOAD_AT_START, 2),
        "libraries": "; ".join(f"{name} {_version(name)}" for name in used),
        "package": own_version(),
        "commit": _commit(),
        "command": _command(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """One line per row; columns in the order in which they first occur, empty where a row has none of that name.

    The file appears whole or not at all.

    Raises:
        OutputError: the system refuses.
    """
    with writing(path, "pass another --out"), replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


@cache
def _machine() -> dict[str, object]:
    host = examine_host()
    cpu, memory = host.cpu, host.memory
    sizes = [size for size in (memory.total_bytes, memory.limit_bytes) if size is not None]
    gpus = [f"{gpu.name}, driver {gpu.driver}, {_gpu_clock(index)}" for index, gpu in enumerate(host.gpus)]
    return {
        "processor": host.board or cpu.model,
        "features": " ".join(name for name, present in cpu.features.items() if present),
        "cores": cpu.cores,
        "quota_cores": cpu.quota_cores,
        "threads_per_core": threads_per_core(),
        "clock_mhz": clock_mhz(),
        "governor": cpu.governor,
        "memory_gib": round(min(sizes) / 2**30, 1) if sizes else None,
        "gpu": "; ".join(gpus),
        "system": host.system,
        "python": platform.python_version(),
    }


def clock_mhz(root: Path = Path("/")) -> int | None:
    """Mean clock of all cores now; what a virtual machine claims may be a constant. None where nothing tells.

    Sources: https://docs.kernel.org/admin-guide/pm/cpufreq.html (kHz), else ``cpu MHz`` of /proc/cpuinfo.
    """
    scaling = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = [int(path.read_text()) / 1e3 for path in scaling]
    clocks = clocks or [float(value) for value in _cpuinfo(root, "cpu MHz")]
    return round(sum(clocks) / len(clocks)) if clocks else None


def threads_per_core(root: Path = Path("/")) -> int | None:
    """Hardware threads that share a core; None where the kernel does not tell."""
    siblings, cores = _cpuinfo(root, "siblings"), _cpuinfo(root, "cpu cores")
    return int(siblings[0]) // int(cores[0]) if siblings and cores else None


def _cpuinfo(root: Path, name: str) -> list[str]:
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name]


def _gpu_clock(index: int) -> str:
    """Clock of a GPU's multiprocessors, now and at most; never executed on a GPU so far."""
    query = ["nvidia-smi", f"--id={index}", "--query-gpu=clocks.sm,clocks.max.sm", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return " of ".join(cell.strip() for cell in done.stdout.split(",")) if done.returncode == 0 else "clock unknown"


def _version(module: str) -> str:
    for package in LIBRARIES[module]:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return str(getattr(sys.modules.get(module), "__version__", "of unknown version"))


@cache
def _commit() -> str:
    """Short hash; ``-dirty`` where a tracked file other than a result differs from it."""
    commit = _git("rev-parse", "--short", "HEAD").strip()
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return f"{commit}{'-dirty' if changed else ''}" or "unknown"


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    except OSError:  # git is not installed
        return ""


def _command() -> str:
    """The command line as one would type it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    what = ["-m", spec.name.removesuffix(".__main__")] if spec is not None else [Path(sys.argv[0]).name]
    return shlex.join(["python", *what, *sys.argv[1:]])
