"""What this machine is: processor, memory, GPU. Read from the kernel's own files; nothing is measured here.

The kernel's names for processor features are in ``arch/x86/include/asm/cpufeatures.h`` and
``Documentation/arch/arm64/elf_hwcaps.rst`` of Linux; limits of a container or a systemd service in
https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_X86_FEATURES: Mapping[str, frozenset[str]] = {
    "AVX2": frozenset({"avx2"}),
    "AVX-512": frozenset({"avx512f"}),
    "VNNI": frozenset({"avx512_vnni", "avx_vnni"}),
    "bf16": frozenset({"avx512_bf16", "amx_bf16"}),
    "AMX": frozenset({"amx_tile"}),
}
_ARM_FEATURES: Mapping[str, frozenset[str]] = {
    "NEON": frozenset({"asimd", "neon"}),
    "fp16": frozenset({"asimdhp"}),
    "dot product": frozenset({"asimddp"}),
    "int8 matmul": frozenset({"i8mm"}),
    "bf16": frozenset({"bf16"}),
    "SVE": frozenset({"sve"}),
}


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor, as far as inference cares."""

    model: str
    cores: int
    """Cores this process may use."""
    quota_cores: float | None
    """Share of them the control group grants; None without a limit."""
    features: Mapping[str, bool]
    """Instructions that decide the speed of a precision: VNNI and dot products for int8, bf16 and AMX for bfloat16.
    Empty where the kernel does not tell."""
    governor: str | None
    """Linux frequency governor; ``powersave`` costs latency."""
    load: float | None
    """Runnable processes, mean of the last minute."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory; None where the kernel does not tell, and for a limit that is not set."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None
    """What the control group grants this process and its siblings."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA device, as ``nvidia-smi`` names it."""

    name: str
    driver: str
    memory: str
    compute_capability: str


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine."""

    system: str
    python: str
    board: str | None
    """The device tree's model, on boards that have one."""
    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...]
    gpu_note: str
    """Why there is no GPU in the list, or what else is known; empty otherwise."""


def examine_host(root: Path = Path("/")) -> Host:
    """Read what the kernel tells. ``root`` is where ``proc`` and ``sys`` are; a missing file is a value not known."""
    gpus, gpu_note = _gpus(root)
    return Host(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        board=_text(root / "proc/device-tree/model"),
        cpu=_cpu(root),
        memory=_memory(root),
        gpus=gpus,
        gpu_note=gpu_note,
    )


def _cpu(root: Path) -> Cpu:
    described = _fields(_text(root / "proc/cpuinfo"))
    x86 = "flags" in described
    known = set(described.get("flags" if x86 else "Features", "").split())
    features = _X86_FEATURES if x86 else _ARM_FEATURES
    load = _text(root / "proc/loadavg")
    return Cpu(
        model=described.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota_cores=_quota_cores(root),
        features={name: bool(flags & known) for name, flags in features.items()} if known else {},
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load=float(load.split()[0]) if load else None,
    )


def _memory(root: Path) -> Memory:
    described = _fields(_text(root / "proc/meminfo"))

    def size(name: str) -> int | None:
        return int(described[name].split()[0]) * 1024 if name in described else None

    limits = [int(text) for text in _control_group(root, "memory.max") if text.isdigit()]
    return Memory(
        total_bytes=size("MemTotal"), available_bytes=size("MemAvailable"), limit_bytes=min(limits, default=None)
    )


def _quota_cores(root: Path) -> float | None:
    quotas = [text.split() for text in _control_group(root, "cpu.max")]
    return min((int(quota) / int(period) for quota, period in quotas if quota.isdigit()), default=None)


def _control_group(root: Path, name: str) -> Iterator[str]:
    """A controller's file in this process's control group (version 2) and in each one above: the least counts."""
    groups = (_text(root / "proc/self/cgroup") or "").splitlines()
    path = next((line.removeprefix("0::").strip("/") for line in groups if line.startswith("0::")), "")
    top = root / "sys/fs/cgroup"
    for folder in (top / path, *(top / path).parents):
        if text := _text(folder / name):
            yield text
        if folder == top:
            return


def _gpus(root: Path) -> tuple[tuple[Gpu, ...], str]:
    """The devices, and what to know when there is none."""
    module = (_text(root / "proc/driver/nvidia/version") or "").splitlines()
    driver = (
        f"kernel driver loaded ({module[0].removeprefix('NVRM version:').strip()})" if module else "no kernel driver"
    )
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return (), f"{driver}, nvidia-smi not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"{driver}, nvidia-smi: {error}"
    if done.returncode != 0:
        return (), f"{driver}, nvidia-smi: {' '.join((done.stdout + done.stderr).split())}"
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    gpus = tuple(
        Gpu(name=row[0], driver=row[1], memory=row[2], compute_capability=row[3]) for row in rows if len(row) == 4
    )
    return gpus, "" if gpus else f"{driver}, nvidia-smi lists no device"


def _text(path: Path) -> str | None:
    """A small kernel file, stripped; None where it is not there."""
    try:
        return path.read_text(errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _fields(text: str | None) -> dict[str, str]:
    """``name : value`` lines; of a name that repeats, the first."""
    fields: dict[str, str] = {}
    for line in (text or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields
