"""`Ssh`: a board over plain OpenSSH, with the user's own configuration, keys and known hosts, and no package.

Commands to one board share a connection (ControlMaster), which this process opens with its first command and ends when
it ends; where the user's configuration shares connections already (ControlPath), theirs is used. An address is checked
before it is given to `ssh`: neither it nor a part of it can be an option, a command or a second word.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from deploykit.contract.errors import UsageError
from deploykit.contract.optional import SystemTool
from deploykit.places.board import Board
from deploykit.places.line import Line

SSH = SystemTool("ssh", "openssh-client", "copy to and start programs on a board")

# Never ask for a password in the middle of a run, and notice a dead line within seconds.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=2", "ServerAliveCountMax=3")
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_HOST = r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]+(?:%[A-Za-z0-9_.]+)?|\[[0-9A-Fa-f:]+(?:%[A-Za-z0-9_.]+)?\])"
_ADDRESS = re.compile(rf"(?:{_USER}@)?{_HOST}|ssh://(?:{_USER}@)?{_HOST}(?::[0-9]{{1,5}})?/?")
_UNREACHABLE = 255
_IDLE_S = 30  # how long a shared connection outlives this process where that is killed
_LONGEST_SOCKET = 80  # a socket's name has 104 bytes on some systems, and ssh adds to it while it makes one


class SshLine(Line):
    """What `ssh ADDRESS` reaches.

    Args:
        address: `user@host`, a host of the user's configuration, or `ssh://user@host:port`.
    Raises:
        UsageError: it is not an address.
    """

    def __init__(self, address: str) -> None:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(f"{address!r} is not an address that ssh takes", hint="user@host")
        super().__init__(address, SSH)
        self._shared: list[str] | None = None
        self._ends: Callable[[], object] = list  # nothing to end yet

    @property
    def hint(self) -> str:
        """See `Line.hint`."""
        return f"try: ssh -o BatchMode=yes {self.name} true"

    def words(self) -> list[str]:
        """See `Line.words`."""
        program = SSH.find()
        if self._shared is None:
            self._shared = self._sharing(program)
        options = [word for option in (*_OPTIONS, *self._shared) for word in ("-o", option)]
        return [program, *options, "--", self.name]

    def is_lost(self, code: int, said: str) -> bool:
        """See `Line.is_lost`."""
        return code == _UNREACHABLE

    def close(self) -> None:
        """See `Line.close`."""
        self._ends()
        self._shared = None

    def _sharing(self, program: str) -> list[str]:
        """Options for a connection of our own that commands share; none where the user's configuration has one."""
        if _has_control_path(program, self.name):
            return []
        folder = Path(tempfile.mkdtemp(prefix="dk-"))
        socket = folder / "line"
        self._ends = weakref.finalize(self, _end, program, self.name, folder, os.getpid())
        if len(str(socket)) > _LONGEST_SOCKET:
            return []
        return ["ControlMaster=auto", f"ControlPath={socket}", f"ControlPersist={_IDLE_S}"]


class Ssh(Board):
    """A machine that `ssh ADDRESS` reaches.

    Args:
        address: as for `ssh`: `user@host`, a host of the user's configuration, or `ssh://user@host:port`. Nothing is
            contacted before an artifact is opened, or asked about.
        python: the Python there that has deploykit; None for `$DEPLOYKIT_BOARD_PYTHON`, or the first that has it of
            `python3` and the virtual environments in the home folder.

    Raises:
        UsageError: it is not an address, or not the name of a program.
    """

    def __init__(self, address: str, *, python: str | None = None) -> None:
        super().__init__(SshLine(address), python=python)
        self.address = address


def _has_control_path(program: str, address: str) -> bool:
    """Whether the user's configuration shares connections to that address."""
    try:
        said = subprocess.run(
            [program, "-G", "--", address], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    lines = said.stdout.decode(errors="replace").lower().splitlines()
    return any(line.startswith("controlpath ") and line != "controlpath none" for line in lines)


def _end(program: str, address: str, folder: Path, owner: int) -> None:
    """End the shared connection; a forked copy of this process has no part in it."""
    if owner != os.getpid():
        return
    if (folder / "line").exists():
        command = [program, "-o", f"ControlPath={folder / 'line'}", "-O", "exit", "--", address]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
    shutil.rmtree(folder, ignore_errors=True)
