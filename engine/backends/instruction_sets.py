"""What a processor computes with, in the words of oneDNN, the library under OpenVINO's convolutions.

oneDNN chooses its kernels by the instructions that it finds. The variable ``ONEDNN_MAX_CPU_ISA`` makes it use fewer
(https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html), so that one processor can show how a
graph runs on others. It is read once, when the library loads: a process can be told once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

VARIABLE = "ONEDNN_MAX_CPU_ISA"
_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
NEEDED: Mapping[str, frozenset[str]] = {
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2 | {"avx_vnni"},
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _AVX512 | {"avx512_vnni"},
    "AVX512_CORE_BF16": _AVX512 | {"avx512_vnni", "avx512_bf16"},
    "AVX512_CORE_FP16": _AVX512 | {"avx512_vnni", "avx512_bf16", "avx512_fp16"},
    "AVX512_CORE_AMX": _AVX512 | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
}
"""By oneDNN's name, from few instructions to many: the flags of ``/proc/cpuinfo`` that it needs."""
WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI"})
"""Told to be one of these, OpenVINO still sees the processor's bfloat16 and then finds no kernel for it."""


@cache
def available() -> tuple[str, ...]:
    """The sets that this processor can be told to be, from few instructions to many; none where it is no x86."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    flags = next((set(line.partition(":")[2].split()) for line in text.splitlines() if line.startswith("flags")), set())
    return tuple(name for name, needed in NEEDED.items() if needed <= flags)


def told() -> str:
    """What :data:`VARIABLE` says, in upper case; empty where it says nothing."""
    return os.environ.get(VARIABLE, "").upper()


def in_use() -> str:
    """The set that oneDNN uses in this process; empty where it is not known."""
    names = available()
    return told() if told() in names else names[-1] if names else ""
