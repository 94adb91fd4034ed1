"""A board over plain OpenSSH: the user's own configuration, keys and known hosts, and no package.

Using a board executes code there: the artifact's program is copied to it and started. The address is always the
user's. Files land under a temporary name, are hashed on the board, and only then get their own name, so that a cut
line leaves nothing that looks whole. A file that is there already, with the right hash, is not sent again.
"""

from __future__ import annotations

import re
import secrets
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.host import Host, isa_in
from deploykit.contract.optional import SystemTool
from deploykit.places.process import Process

SSH = SystemTool("ssh", "openssh-client", "copy to and start programs on a board")
FOLDER = ".cache/deploykit"
"""On the board, in the home folder; may be removed at any time."""

# Never ask for a password in the middle of a run, and notice a dead line within seconds.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=2", "ServerAliveCountMax=3")
_ADDRESS = re.compile(r"(?!-)[A-Za-z0-9_.:@%/\[\]-]+")
_SHORT_S, _COPY_S = 60.0, 3600.0
_UNREACHABLE, _DAMAGED = 255, 65
_ARRIVE = """
set -e; umask 077; mkdir -p {folder}; part={folder}/.{name}.{token}.part; trap 'rm -f "$part"' EXIT
cat > "$part"; printf '%s  %s\\n' {digest} "$part" | sha256sum -c - >/dev/null 2>&1 || exit {damaged}
chmod {mode} "$part"; mv -f "$part" {folder}/{name}
"""


class Board:
    """A machine that `ssh ADDRESS` reaches.

    Args:
        address: as for `ssh`: `user@host`, a host of the user's configuration, or `ssh://user@host:port`.

    Raises:
        UsageError: it is not an address.
    """

    def __init__(self, address: str) -> None:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(f"{address!r} is not an address that ssh takes", hint="user@host")
        self.address = address
        self._host: Host | None = None

    def cores(self) -> int:
        """How many cores its programs may use."""
        return self.host().cores

    def host(self) -> Host:
        """What machine it is; asked once.

        Raises:
            MissingDependencyError: there is no `ssh` here.
            DeviceError: it cannot be reached, or is no Linux machine.
        """
        if self._host is None:
            said = self._run("uname -m; uname -s; nproc; cat /proc/cpuinfo").stdout.decode(errors="replace")
            arch, system, cores, cpuinfo = (said.split("\n", 3) + [""] * 4)[:4]
            if not cores.isdigit():
                raise DeviceError(f"{self} does not answer like a Linux machine: {said[:200]}", hint=self._hint)
            self._host = Host(arch, isa_in(cpuinfo, arch), int(cores), system)
        return self._host

    def upload(self, files: Sequence[Path], *, executable: str) -> str:
        """Copy files into one folder on the board.

        Args:
            executable: name of the one that is a program.
        Returns:
            The folder's name, relative to the home folder; it is made of the hashes, so that it holds these files only.
        Raises:
            DeviceError: the line was cut, or what arrived is not what was sent.
        """
        digests = {path: sha256_of(path) for path in files}
        folder = f"{FOLDER}/{digests[files[0]][:16]}{digests[files[-1]][:16]}"
        for path, digest in digests.items():
            if not self._has(f"{folder}/{path.name}", digest):
                self._send(path, digest, folder, "700" if path.name == executable else "600")
        return folder

    def start(self, words: Sequence[str], *, what: str, timeout_s: float) -> Process:
        """Start a program on the board; its standard input and output are the child's.

        Args:
            words: program and arguments; relative paths start at the home folder.
        """
        return Process(
            self._command("exec " + shlex.join(words)),
            what=f"{what} on {self}",
            explain=lambda code, said: _ending(code),
            timeout_s=timeout_s,
        )

    def _has(self, path: str, digest: str) -> bool:
        found = self._run(f"sha256sum {shlex.quote(path)} 2>/dev/null || true").stdout.split()
        return bool(found) and found[0].decode(errors="replace") == digest

    def _send(self, path: Path, digest: str, folder: str, mode: str) -> None:
        script = _ARRIVE.format(
            folder=shlex.quote(folder),
            name=shlex.quote(path.name),
            token=secrets.token_hex(4),
            digest=digest,
            damaged=_DAMAGED,
            mode=mode,
        )
        with path.open("rb") as source:
            done = self._run(script, stdin=source.fileno(), timeout_s=_COPY_S, check=False)
        if done.returncode == _DAMAGED:
            raise DeviceError(f"{path.name} arrived damaged on {self}; nothing was kept", hint="try again")
        self._check(done)

    def _run(
        self, script: str, *, stdin: int = subprocess.DEVNULL, timeout_s: float = _SHORT_S, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        command = self._command(script)
        try:
            done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self} did not answer within {timeout_s:g} s") from error
        except OSError as error:
            raise DeviceError(f"ssh cannot be started: {error}") from error
        if check:
            self._check(done)
        return done

    def _check(self, done: subprocess.CompletedProcess[bytes]) -> None:
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            failed = (
                "cannot be reached, or the line was cut" if done.returncode == _UNREACHABLE else "refused a command"
            )
            raise DeviceError(f"{self} {failed}: {said or f'ssh ended with code {done.returncode}'}", hint=self._hint)

    @property
    def _hint(self) -> str:
        return f"try: ssh -o BatchMode=yes {self.address} true"

    def _command(self, script: str) -> list[str]:
        options = [word for option in _OPTIONS for word in ("-o", option)]
        return [SSH.find(), *options, "--", self.address, shlex.join(["sh", "-c", script])]

    def __str__(self) -> str:
        return self.address


def _ending(code: int) -> str:
    """How a program on a board ended, by the exit code of its `ssh`."""
    if code == _UNREACHABLE:
        return "lost its connection"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return ""
    return f"was killed by {name}" + (": the CPU lacks an instruction" if name == "SIGILL" else "")
