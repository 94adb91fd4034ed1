"""Ask an x86-64 CPU itself which instruction sets it has, on Linux, Windows and macOS alike.

`/proc/cpuinfo` is not asked: it does not exist on Windows and macOS, and under emulation it shows the machine beneath,
while runtimes choose their kernels by the CPUID instruction. No library for it is needed: two functions of a few bytes
of machine code. Where memory may not be made executable the answer is None, and callers say that nothing is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import platform
import sys
from collections.abc import Callable, Iterator

_PAGE_BYTES = 4096
_X86 = frozenset({"x86_64", "amd64"})

# (rdi | ecx: leaf, rsi | edx: subleaf, rdx | r8: four words out); the calling convention decides the first bytes.
_CPUID = {
    "sysv": "53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3",
    "windows": "53 89c8 89d1 0fa2 418900 41895804 41894808 4189500c 5b c3",
}
# xgetbv of register 0, (rdi | rcx: one word out): which registers the operating system saves.
_XGETBV = {"sysv": "31c9 0f01d0 8907 c3", "windows": "4989c8 31c9 0f01d0 418900 c3"}

# name -> (leaf, subleaf, register eax..edx as 0..3, bit)
_BITS = {
    "sse4_2": (1, 0, 2, 20),
    "fma": (1, 0, 2, 12),
    "avx2": (7, 0, 1, 5),
    "avx512f": (7, 0, 1, 16),
    "avx512bw": (7, 0, 1, 30),
    "avx512_vnni": (7, 0, 2, 11),
    "amx_bf16": (7, 0, 3, 22),
    "avx512_fp16": (7, 0, 3, 23),
    "amx_tile": (7, 0, 3, 24),
    "amx_int8": (7, 0, 3, 25),
    "avx_vnni": (7, 1, 0, 4),
    "avx512_bf16": (7, 1, 0, 5),
}
_OS_SAVES = 27  # bit of leaf 1, ecx
# What the operating system must save for a family of instruction sets: bits of XCR0.
_SAVED = {"avx512": 0xE6, "amx": 0x60006, "avx": 0x06, "fma": 0x06}

_HYPERVISOR, _HYPERVISOR_LEAF = 31, 0x4000_0000  # bit of leaf 1, ecx; the leaf that names it
_EMULATORS = {b"TCGTCGTCGTCG": "QEMU"}

Words = tuple[int, int, int, int]
Cpuid = Callable[[int, int], Words]


@functools.cache
def instruction_sets() -> frozenset[str] | None:
    """The instruction sets of `_BITS` that this CPU has and this operating system lets programs use.

    Returns:
        Names in the Linux kernel's spelling; None on another architecture, and where the CPU could not be asked.
    """
    if platform.machine().lower() not in _X86 or sys.maxsize < 2**32:
        return None
    try:
        with _machine_code() as (cpuid, saved):
            return decode(cpuid, saved)
    except (OSError, ValueError, BufferError, AttributeError):
        return None


@functools.cache
def emulator() -> str:
    """The emulator whose instructions these are; "" on silicon, on another architecture, and where nothing is known.

    Of QEMU's own translation, as `qemu-x86_64` and a container of another architecture use it. A virtual machine that
    runs on the silicon is none. What it times means nothing, and which CPU it plays is `instruction_sets`.
    """
    if platform.machine().lower() not in _X86 or sys.maxsize < 2**32:
        return ""
    try:
        with _machine_code() as (cpuid, _):
            return emulator_in(cpuid)
    except (OSError, ValueError, BufferError, AttributeError):
        return ""


def emulator_in(cpuid: Cpuid) -> str:
    """The emulator behind a CPU's answers; arguments as those of `decode`."""
    if not cpuid(1, 0)[2] >> _HYPERVISOR & 1:
        return ""
    signature = b"".join(word.to_bytes(4, "little") for word in cpuid(_HYPERVISOR_LEAF, 0)[1:])
    return _EMULATORS.get(signature, "")


def decode(cpuid: Cpuid, saved: Callable[[], int]) -> frozenset[str]:
    """The names behind a CPU's answers.

    Args:
        cpuid: (leaf, subleaf) -> eax, ebx, ecx, edx.
        saved: the low word of XCR0; asked only where the CPU has it.
    """
    highest = cpuid(0, 0)[0]
    leaves = {(1, 0): cpuid(1, 0)}
    if highest >= 7:
        leaves[7, 0] = cpuid(7, 0)
        if leaves[7, 0][0] >= 1:
            leaves[7, 1] = cpuid(7, 1)
    state = saved() if leaves[1, 0][2] >> _OS_SAVES & 1 else 0
    return frozenset(
        name
        for name, (leaf, subleaf, register, bit) in _BITS.items()
        if (leaf, subleaf) in leaves and leaves[leaf, subleaf][register] >> bit & 1 and _is_saved(name, state)
    )


def _is_saved(name: str, state: int) -> bool:
    needed = next((bits for family, bits in _SAVED.items() if name.startswith(family)), 0)
    return state & needed == needed


@contextlib.contextmanager
def _machine_code() -> Iterator[tuple[Cpuid, Callable[[], int]]]:
    """CPUID and XGETBV as functions, for as long as their page is there."""
    convention = "windows" if sys.platform == "win32" else "sysv"
    first, second = bytes.fromhex(_CPUID[convention]), bytes.fromhex(_XGETBV[convention])
    with _executable(first.ljust(64, b"\x90") + second) as address:
        ask = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)
        get = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address + 64)
        words, state = (ctypes.c_uint32 * 4)(), ctypes.c_uint32()

        def cpuid(leaf: int, subleaf: int) -> Words:
            ask(leaf, subleaf, ctypes.addressof(words))
            return words[0], words[1], words[2], words[3]

        def saved() -> int:
            get(ctypes.addressof(state))
            return state.value

        yield cpuid, saved


@contextlib.contextmanager
def _executable(code: bytes) -> Iterator[int]:
    """The address of a page that holds `code`.

    Raises:
        OSError: the system allows no such page.
    """
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32
        kernel.VirtualAlloc.restype = ctypes.c_void_p
        address = kernel.VirtualAlloc(None, ctypes.c_size_t(_PAGE_BYTES), 0x3000, 0x40)
        if not address:
            raise OSError("no executable memory")
        try:
            ctypes.memmove(address, code, len(code))
            yield address
        finally:
            kernel.VirtualFree(ctypes.c_void_p(address), ctypes.c_size_t(0), 0x8000)
    else:
        page = mmap.mmap(-1, _PAGE_BYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        start = ctypes.c_char.from_buffer(page)
        try:
            yield ctypes.addressof(start)
        finally:
            del start
            page.close()
