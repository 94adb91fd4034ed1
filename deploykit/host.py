"""What machine a figure was taken on: architecture, instruction sets, cores. Recorded with every measured figure."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

# Only the instruction sets that change int8/half numerics or speed; names as the Linux kernel spells them.
_ISA_OF_INTEREST = (
    "avx2 fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 "
    "asimd asimdhp asimddp i8mm bf16 sve sve2"
).split()


@dataclass(frozen=True)
class Host:
    """The machine that took a measurement.

    Attributes:
        arch: `x86_64`, `aarch64`, ...
        isa: the instruction sets that matter to kernels, kernel spelling.
        cores: logical cores that this process may use.
        os: operating system name.
    """

    arch: str
    isa: tuple[str, ...]
    cores: int
    os: str

    def __str__(self) -> str:
        return f"{self.arch} [{' '.join(self.isa)}], {self.cores} cores, {self.os}"

    def has(self, feature: str) -> bool:
        """Whether the instruction set `feature` is there."""
        return feature in self.isa


@functools.cache
def this_host() -> Host:
    """Describe the machine this process runs on. On systems without /proc/cpuinfo the ISA list is empty."""
    return Host(platform.machine(), _read_isa(), usable_cores(), platform.system())


def usable_cores() -> int:
    """Logical cores that this process may use (honours CPU affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_isa() -> tuple[str, ...]:
    try:
        return isa_in(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ()


def isa_in(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets that matter, of the text of a /proc/cpuinfo (of this machine or another one)."""
    lines = cpuinfo.splitlines()
    flags = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split(":", 1)[1].split()}
    return tuple(name for name in _ISA_OF_INTEREST if name in flags)
