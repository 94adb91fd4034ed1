"""The machine is asked itself: instruction sets from a CPU's answers, and what is said where there are none."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from deploykit.contract import cpuid as _cpuid
from deploykit.contract import host
from deploykit.contract.host import Host, this_host

# eax, ebx, ecx, edx by (leaf, subleaf), as the vendors' manuals number the bits.
_BASE = {(0, 0): (7, 0, 0, 0), (1, 0): (0, 0, 1 << 12 | 1 << 20 | 1 << 27 | 1 << 28, 0)}
HASWELL = {**_BASE, (7, 0): (0, 1 << 5, 0, 0)}
ALDER_LAKE = {**_BASE, (7, 0): (1, 1 << 5, 0, 0), (7, 1): (1 << 4, 0, 0, 0)}
ICE_LAKE = {**_BASE, (7, 0): (0, 1 << 5 | 1 << 16 | 1 << 30, 1 << 11, 0)}
AVX, AVX512 = 0x7, 0xE7


def names(leaves: dict[tuple[int, int], _cpuid.Words], saved: int) -> frozenset[str]:
    return _cpuid.decode(lambda leaf, subleaf: leaves[leaf, subleaf], lambda: saved)


def test_names_are_those_of_the_answers() -> None:
    assert names(HASWELL, AVX) == {"sse4_2", "fma", "avx2"}
    assert names(ALDER_LAKE, AVX) == {"sse4_2", "fma", "avx2", "avx_vnni"}
    assert names(ICE_LAKE, AVX512) == {"sse4_2", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni"}


def test_what_the_system_does_not_save_is_not_there() -> None:
    assert names(ICE_LAKE, AVX) == {"sse4_2", "fma", "avx2"}
    assert names(ICE_LAKE, 0) == {"sse4_2"}


def test_an_old_cpu_is_not_asked_for_what_it_lacks() -> None:
    assert names({(0, 0): (4, 0, 0, 0), (1, 0): (0, 0, 1 << 20, 0)}, 0) == {"sse4_2"}


def test_this_cpu_agrees_with_the_system() -> None:
    asked = _cpuid.instruction_sets()
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.is_file():
        assert asked is None or asked
        pytest.skip("only Linux on x86-64 has a second opinion")
    seen = host.isa_in(cpuinfo.read_text(encoding="utf-8"), "x86_64")
    assert asked is not None and asked <= set(seen)  # fewer under emulation, which shows the machine beneath
    assert set(this_host().isa) == asked


@pytest.mark.parametrize(
    ("hypervisor", "signature", "emulated_by"),
    [(1, b"TCGTCGTCGTCG", "QEMU"), (1, b"KVMKVMKVM\0\0\0", ""), (0, b"TCGTCGTCGTCG", "")],
)
def test_an_emulator_says_its_name(hypervisor: int, signature: bytes, emulated_by: str) -> None:
    """A virtual machine on the silicon is none; without the hypervisor's bit its leaf means nothing."""
    words = [int.from_bytes(signature[at : at + 4], "little") for at in (0, 4, 8)]
    leaves = {(1, 0): (0, 0, hypervisor << 31, 0), (0x4000_0000, 0): (0x4000_0001, *words)}
    assert _cpuid.emulator_in(lambda leaf, subleaf: leaves[leaf, subleaf]) == emulated_by


def test_without_executable_memory_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("execmem")

    monkeypatch.setattr(_cpuid.mmap, "mmap", refused)
    assert _cpuid.instruction_sets.__wrapped__() is None
    assert _cpuid.emulator.__wrapped__() == ""


def test_a_text_about_another_architecture_says_nothing() -> None:
    """User-mode emulation shows the /proc/cpuinfo of the machine beneath."""
    board = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\n"
    desktop = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma avx512_vnni\n"
    assert host.isa_in(board, "aarch64") == ("asimd", "asimdhp", "asimddp")
    assert host.isa_in(desktop, "x86_64") == ("sse4_2", "avx2", "fma", "avx512_vnni")
    assert host.isa_in(desktop, "aarch64") == host.isa_in(board, "x86_64") == ()
    assert not Host("aarch64", host.isa_in(desktop, "aarch64"), 2, "Linux").knows_isa


def test_vnni_is_any_of_its_forms() -> None:
    assert Host("x86_64", ("avx2", "avx_vnni"), 2, "Linux").has("vnni")
    assert Host("AMD64", ("avx2", "avx512_vnni"), 2, "Windows").has("vnni")
    assert not Host("x86_64", ("avx2", "fma"), 2, "Linux").has("vnni")
    assert Host("aarch64", ("asimd", "asimddp"), 4, "Linux").has("dotprod")


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (Host("x86_64", ("sse4_2", "avx2", "fma"), 2, "Linux"), "x86-64 with AVX2, without VNNI"),
        (Host("AMD64", ("sse4_2", "avx2", "avx_vnni"), 2, "Windows"), "x86-64 with AVX2, with VNNI"),
        (
            Host("x86_64", ("avx2", "avx512bw", "avx512_vnni", "amx_int8"), 2, "Linux"),
            "x86-64 with AVX-512 and AMX, with VNNI",
        ),
        (Host("x86_64", (), 2, "Darwin"), "x86-64, instruction sets not known"),
        (Host("arm64", ("asimd", "asimddp"), 8, "Darwin"), "arm64 with dot products"),
    ],
)
def test_a_kind_of_cpu_has_a_name(found: Host, kind: str) -> None:
    assert found.kind == kind
    assert found.knows_isa == bool(found.isa)


def test_asking_loads_no_framework() -> None:
    code = (
        "import sys, deploykit.contract.host as h; h.this_host(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([*_python(), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def _python() -> list[str]:
    import sys

    return [sys.executable]
