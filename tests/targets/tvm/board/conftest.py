"""A fake board: a program called `ssh` that runs commands on this machine, in a folder of its own, under emulation.

It is a fake: no network, no other machine, no OpenSSH. What it shows is what our side of the connection does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
address=$2; shift 2
echo "$address: $*" >> "$FAKE_BOARD/log"
export HOME="$FAKE_BOARD/home" PATH="$FAKE_BOARD/board:$PATH"
cd "$HOME"
command=$(printf '%s' "$*" | sed "s#\\(cd;\\|(\\) .cache#\\1 qemu-aarch64-static -cpu $FAKE_CPU .cache#")
case "$FAKE_FAULT:$*" in
  unreachable:*) echo "ssh: connect to host $address port 22: No route to host" >&2; exit 255;;
  cut:*"dd bs"*) head -c 1000 | sh -c "$command"; exit 255;;
  damaged:*"dd bs"*) tr '\\000' x | sh -c "$command"; exit $?;;
  lost:*"cd; .cache"*) exit 255;;
  killed:*"cd; .cache"*) exit 137;;
  silent:*"cd; .cache"*) exec sleep 60;;
esac
exec sh -c "$command"
"""


class FakeBoard:
    """What tests look at and change."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch

    def have(self, *, cpu: str | None = None, fault: str | None = None) -> None:
        """Make it another CPU, or let something go wrong."""
        for name, value in (("FAKE_CPU", cpu), ("FAKE_FAULT", fault)):
            if value is not None:
                self._monkeypatch.setenv(name, value)

    @property
    def commands(self) -> list[str]:
        """What it was asked."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    @property
    def files(self) -> list[Path]:
        """What lies in its home."""
        return [path for path in (self.folder / "home").rglob("*") if path.is_file()]


@pytest.fixture
def fake_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs the Debian package qemu-user-static")
    folder = tmp_path / "board"
    for name in ("home", "board", "ours"):
        (folder / name).mkdir(parents=True)
    programs = {
        "ours/ssh": SSH,
        "board/uname": '#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || echo Linux\n',
        "board/getconf": "#!/bin/sh\necho 2\n",
    }
    for name, text in programs.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FAKE_BOARD", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'ours'}{os.pathsep}{os.environ['PATH']}")
    made = FakeBoard(folder, monkeypatch)
    made.have(cpu="cortex-a76", fault="none")
    return made


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """(name, shell script) -> a program of that name that is found first; "" for a PATH without the name."""

    def put(name: str, script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return folder / name

    return put
