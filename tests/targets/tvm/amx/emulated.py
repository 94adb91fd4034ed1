"""Tiles of AMX on CPUs without: compile the emulator, and open a library as on a CPU that has them.

What it proves is that results are right; how long anything takes means nothing. The library is the artifact's own but
for its CPUID instructions, two bytes each, which are made to fault so that the emulator answers them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.contract.host import this_host
from deploykit_targets.tvm.build import LIBRARY

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))
from cpuid_patch import patch

_HERE, _ROOT = Path(__file__).parent, Path(__file__).parents[4]
FAULTS = b"\x06\xa2"
"""What `emulator.c` takes for CPUID."""
EMULATED = "AMX_EMULATED"
_BENEATH = ("avx512_vnni", "avx512bw")  # what kernels with tiles use besides, and no handler executes


def compiled(source: str, folder: Path, *flags: str) -> Path:
    """Compile a C file of this folder; skips, with the reason, without a compiler that knows tiles."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler (the Debian package gcc)")
    made = folder / Path(source).stem
    command = ["cc", "-std=gnu11", "-Wall", "-Wextra", *flags, "-o", str(made), str(_HERE / source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized command" in done.stderr:
        pytest.skip(f"this compiler knows no AMX: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return made


def compile_emulator(folder: Path) -> Path:
    """Compile the emulator; skips, with the reason, where this CPU has tiles, or has no AVX-512 with VNNI beside them.

    A CPU with tiles executes what needs no leave (LDTILECFG) itself, and the emulator would not hear of it.
    """
    if this_host().has("amx_tile"):
        pytest.skip("this CPU has tiles: the tests of its own variant run on them")
    missing = [name for name in _BENEATH if not this_host().has(name)]
    if missing:
        pytest.skip(f"this CPU has no {' and no '.join(missing)}, which kernels with tiles use beside them")
    return compiled("emulator.c", folder, "-O3", "-mavx2", "-mfma", "-shared", "-fPIC")


class Tiles:
    """The emulator in this process, between `install` and `remove`."""

    def __init__(self, emulator: Path) -> None:
        self._library = ctypes.CDLL(str(emulator))
        self._library.amx_products.restype = ctypes.c_ulong

    def install(self) -> None:
        """Execute the tile instructions of all threads from now on."""
        self._library.amx_install()

    def remove(self) -> None:
        """Let them be illegal instructions again."""
        self._library.amx_remove()

    @property
    def products(self) -> int:
        """Products of tiles so far."""
        return int(self._library.amx_products())


def with_tiles(emulator: Path, artifact: Path, scratch: Path, *arguments: str | Path) -> str:
    """Run this Python on a copy of an artifact's folder, as on a CPU that has tiles.

    Args:
        arguments: the script and its arguments, before the folder.
    Returns:
        What it printed on its standard output.
    """
    copy = scratch / "artifact"
    shutil.copytree(artifact, copy)
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump (the Debian package binutils)")
    assert patch(copy / LIBRARY, FAULTS) > 0, "the library asks CPUID nothing"
    path = [str(_ROOT / part) for part in ("", "calibration", "targets")] + os.environ.get("PYTHONPATH", "").split(":")
    own = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "LD_PRELOAD": str(emulator), EMULATED: "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments), str(copy)],
        capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **own},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
