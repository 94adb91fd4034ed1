"""Copies of installed packages whose CPUID instructions fault, for `cpuid_mask.c` on a CPU without CPUID faulting.

    python cpuid_patch.py FOLDER [onnxruntime openvino ai_edge_litert]
    MASK=avx2 MASK_PATCHED=1 LD_PRELOAD=$PWD/mask.so PYTHONPATH=FOLDER:$PYTHONPATH python ...

Each `cpuid` that `objdump` finds in their libraries becomes an `int 0x81`, as long, which ends in the handler of the
preloaded library. The installed packages stay as they are. Code that a library generates as it runs asks the library.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CPUID, FAULT = b"\x0f\xa2", b"\xcd\x81"
_EXECUTABLE, _LOADED = 1, 1


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Address, offset and size of each executable segment of a 64-bit ELF file."""
    (start,), (size, count) = struct.unpack_from("<Q", data, 0x20), struct.unpack_from("<HH", data, 0x36)
    for index in range(count):
        kind, flags, offset, address, _, in_file = struct.unpack_from("<IIQQQQ", data, start + index * size)
        if kind == _LOADED and flags & _EXECUTABLE:
            yield address, offset, in_file


def patch(path: Path, fault: bytes = FAULT) -> int:
    """Replace the CPUID instructions of a library by two bytes that fault; how many there were."""
    data = bytearray(path.read_bytes())
    listing = subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    places = [int(found, 16) for found in re.findall(r"^\s*([0-9a-f]+):\s.*\tcpuid\s*$", listing, re.MULTILINE)]
    for place in places:
        where = next(place - a + offset for a, offset, size in segments(data) if a <= place < a + size)
        assert data[where : where + 2] == CPUID, f"{path.name}: no CPUID instruction at {place:x}"
        data[where : where + 2] = fault
    path.write_bytes(data)
    return len(places)


def main() -> None:
    """Copy and patch."""
    folder, *names = sys.argv[1:]
    for name in names or ["onnxruntime", "openvino", "ai_edge_litert"]:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, f"{name} is not installed"
        copy = Path(folder, name)
        shutil.copytree(Path(spec.origin).parent, copy)
        libraries = [path for path in copy.rglob("*.so*") if path.read_bytes()[:4] == b"\x7fELF"]
        print(name, {path.name: count for path in libraries if (count := patch(path))})


if __name__ == "__main__":
    main()
