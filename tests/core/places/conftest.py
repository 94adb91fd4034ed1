"""Programs for another architecture, made by the cross compiler; tests skip where it, or the emulator, is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Compile = Callable[[str], Path]


@pytest.fixture
def compile_arm(tmp_path: Path) -> Compile:
    """C source -> static aarch64 program."""
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None or shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static")

    def compile_source(source: str) -> Path:
        path = tmp_path / "program"
        (tmp_path / "program.c").write_text(source, encoding="utf-8")
        command = [compiler, "-static", "-march=armv8.2-a+dotprod", "-o", str(path), str(tmp_path / "program.c")]
        subprocess.run(command, check=True)
        return path

    return compile_source
