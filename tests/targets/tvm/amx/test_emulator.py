"""The emulator of tile instructions against the manual: results of each, and what faults."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from emulated import EMULATED, compiled


def test_every_instruction_and_every_fault(amx_emulator: Path, tmp_path: Path) -> None:
    program = compiled("instructions.c", tmp_path, "-O1", "-mamx-tile", "-mamx-int8", "-mamx-bf16")
    environment = {**os.environ, "LD_PRELOAD": str(amx_emulator), EMULATED: "1"}
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.stdout, done.returncode) == ("ok\n", 0)


def test_without_it_the_instructions_are_illegal(amx_emulator: Path, tmp_path: Path) -> None:
    """What the test above passes by is the emulator, and nothing beneath it."""
    del amx_emulator  # skips where the other test does
    program = compiled("instructions.c", tmp_path, "-O1", "-mamx-tile", "-mamx-int8", "-mamx-bf16")
    plain = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", EMULATED)}
    found = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False, env=plain)
    assert found.returncode != 0 and "ok" not in found.stdout
