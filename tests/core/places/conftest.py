"""Programs for another architecture, made by the cross compiler; tests skip where it, or the emulator, is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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


SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
address=$2; shift 2
echo "$address: $*" >> "$STAND_IN/log"
export HOME="$STAND_IN/home"; cd "$HOME"
case "$STAND_IN_FAULT:$*" in
  unreachable:*) echo "ssh: connect to host $address port 22: No route to host" >&2; exit 255;;
  cut:*"dd bs"*) head -c 50 | sh -c "$*"; exit 255;;
  damaged:*"dd bs"*) tr a-z A-Z | sh -c "$*"; exit $?;;
  full:*"dd bs"*) echo "sh: write error: No space left on device" >&2; exit 1;;
  silent:*python*) exec sleep 60;;
  noisy:*python*) echo "Welcome to this board"; exec sh -c "$*";;
  line:*python*) sh -c "$*"; exit 255;;
  noshell:*) echo "this account is for sftp only" >&2; exit 1;;
esac
exec sh -c "$*"
"""


class StandIn:
    """A board that is this machine in a home of its own, behind a program called `ssh`: no network, no OpenSSH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch

    def have(self, fault: str) -> None:
        """Let something go wrong."""
        self._monkeypatch.setenv("STAND_IN_FAULT", fault)

    @property
    def commands(self) -> str:
        """What it was asked, all in one."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def files(self) -> list[Path]:
        """What lies in its home."""
        return [path for path in (self.folder / "home").rglob("*") if path.is_file()]


@pytest.fixture
def toy_children(toy_path: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of any Python find the toy toolchain, and what this process finds."""
    own = [*map(str, toy_path), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(own))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_children: None) -> StandIn:
    folder = tmp_path / "board"
    for name in ("home", "ours"):
        (folder / name).mkdir(parents=True)
    (folder / "ours/ssh").write_text(SSH, encoding="utf-8")
    (folder / "ours/ssh").chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("STAND_IN_FAULT", "none")
    monkeypatch.setenv("PATH", f"{folder / 'ours'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DEPLOYKIT_BOARD_PYTHON", sys.executable)
    return StandIn(folder, monkeypatch)
