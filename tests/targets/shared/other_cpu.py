"""Run a program as on a CPU without VNNI: here where this CPU is one, else under QEMU's user-mode emulation of Haswell.

What it proves is that results are right there; how long anything takes under emulation means nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.contract.cpuid import emulator
from deploykit.contract.host import this_host

EMULATOR = "qemu-x86_64-static"
_ROOT = Path(__file__).parents[3]


def command_without_vnni() -> list[str]:
    """What starts this Python as on a CPU without VNNI; skips, with the reason, where nothing can."""
    if this_host().family != "x86-64":
        pytest.skip(f"this is a {this_host().family} CPU: no x86-64 program runs here")
    if not this_host().has("vnni") and not emulator():  # what an emulated process starts runs on the CPU beneath
        return [sys.executable]
    found = shutil.which(EMULATOR)
    if found is None:
        pytest.skip(f"this CPU has VNNI, and one without needs {EMULATOR}: sudo apt-get install qemu-user-static")
    return [found, "-cpu", "Haswell", sys.executable]


def without_vnni(*arguments: str | Path) -> str:
    """Run this Python with `arguments` as on a CPU without VNNI.

    Returns:
        What it printed on its standard output.
    """
    own = [str(_ROOT / part) for part in ("", "calibration", "targets")]
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (inherited, *own)))}
    done = subprocess.run(
        [*command_without_vnni(), *map(str, arguments)],
        capture_output=True, text=True, timeout=600, check=False, env=environment, cwd=_ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
