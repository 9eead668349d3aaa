"""What is read of a machine, from trees laid like other machines' kernels lay theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.doctor.host import examine_host
from engine.version import own_version

SERVER = """processor\t: 0
model name\t: Some Server CPU @ 2.00GHz
flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_bf16

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
BOARD = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd42\n"
OLD = "processor\t: 0\nmodel name\t: Old Laptop\nflags\t\t: fpu sse4_2 avx\n"
MEMORY = "MemTotal:       8000000 kB\nMemFree:  1 kB\nMemAvailable:   6000000 kB\n"


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, as a shell script and the only one on the path."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture(autouse=True)
def _no_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("cpuinfo", "has", "lacks"),
    [
        (SERVER, {"AVX2", "AVX-512", "VNNI", "bf16", "AMX"}, set()),
        (OLD, set(), {"AVX2", "AVX-512", "VNNI", "bf16", "AMX"}),
        (BOARD, {"NEON", "fp16", "dot product"}, {"int8 matmul", "bf16", "SVE"}),
    ],
)
def test_instructions_are_named_by_what_they_speed_up(cpuinfo, has, lacks, tmp_path) -> None:
    features = examine_host(lay(tmp_path, {"proc/cpuinfo": cpuinfo})).cpu.features
    assert {name for name, there in features.items() if there} == has
    assert {name for name, there in features.items() if not there} == lacks


def test_a_board_is_named_by_its_device_tree(tmp_path) -> None:
    root = lay(tmp_path, {"proc/cpuinfo": BOARD, "proc/device-tree/model": "Orin Nano Developer Kit\0"})
    assert examine_host(root).board == "Orin Nano Developer Kit"


def test_a_service_s_limits_count_and_the_tightest_wins(tmp_path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/meminfo": MEMORY,
            "proc/self/cgroup": "1:name=systemd:/old\n0::/system.slice/mapper.service\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/memory.max": "4000000000\n",
            "sys/fs/cgroup/system.slice/mapper.service/memory.max": "5000000000\n",
            "sys/fs/cgroup/system.slice/mapper.service/cpu.max": "150000 100000\n",
        },
    )
    host = examine_host(root)
    assert (host.memory.total_bytes, host.memory.available_bytes) == (8_192_000_000, 6_144_000_000)
    assert host.memory.limit_bytes == 4_000_000_000
    assert host.cpu.quota_cores == 1.5


def test_a_machine_that_tells_nothing_is_described_all_the_same(tmp_path) -> None:
    host = examine_host(tmp_path)
    assert host.cpu.features == {}
    assert host.cpu.cores >= 1
    assert (host.memory.total_bytes, host.memory.limit_bytes, host.cpu.quota_cores) == (None, None, None)
    assert host.gpus == ()
    assert host.gpu_note == "no kernel driver, nvidia-smi not installed"


def test_gpus_are_listed_as_the_driver_s_tool_tells_them(tmp_path, monkeypatch) -> None:
    nvidia_smi(
        tmp_path / "bin", "echo 'NVIDIA H100, 580.1, 81559 MiB, 9.0'; echo 'T4, 580.1, 15360 MiB, 7.5'", monkeypatch
    )
    host = examine_host(tmp_path)
    assert [(gpu.name, gpu.compute_capability) for gpu in host.gpus] == [("NVIDIA H100", "9.0"), ("T4", "7.5")]
    assert (host.gpus[0].driver, host.gpus[0].memory, host.gpu_note) == ("580.1", "81559 MiB", "")


def test_a_driver_whose_tool_fails_says_why_there_is_no_gpu(tmp_path, monkeypatch) -> None:
    nvidia_smi(
        tmp_path / "bin", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", monkeypatch
    )
    root = lay(tmp_path, {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module 580.1\nGCC\n"})
    host = examine_host(root)
    assert host.gpus == ()
    assert host.gpu_note == (
        "kernel driver loaded (NVIDIA UNIX Open Kernel Module 580.1), "
        "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"
    )


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the kernel tells nothing here")
def test_this_machine_agrees_with_the_c_library() -> None:
    host = examine_host()
    assert host.memory.total_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host.cpu.cores <= (os.cpu_count() or 1)
    assert own_version()
