"""`Ssh`: a board over plain OpenSSH, with the user's own configuration, keys and known hosts, and no package.

Using a board executes code there: the artifact is copied to it and opened by the deploykit that is installed there, or,
where it brings a program of its own, that program is started. The address is always the user's. Files land under a
temporary name, are hashed on the board, and only then get their own name, so that a cut line leaves nothing that looks
whole. A file that is there already, with the right hash, is not sent again.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit._version import __version__
from deploykit.artifact import manifest as layout
from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.host import Host, isa_in
from deploykit.contract.optional import SystemTool
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.peer import Peer, RemoteSession, Wants
from deploykit.places.place import Elsewhere, program_preflight
from deploykit.places.process import OTHER_VERSION, Process, server_code, time_limit

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.precision import Evidence
    from deploykit.contract.requirements import Preflight
    from deploykit.contract.session import Session

SSH = SystemTool("ssh", "openssh-client", "copy to and start programs on a board")
FOLDER = ".cache/deploykit"
"""On the board, in the home folder; may be removed at any time."""
PYTHON = "DEPLOYKIT_BOARD_PYTHON"
"""Environment variable: the Python on boards that has deploykit, where it is none of those that are looked for."""

# Never ask for a password in the middle of a run, and notice a dead line within seconds.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=2", "ServerAliveCountMax=3")
_ADDRESS = re.compile(r"(?!-)[A-Za-z0-9_.:@%/\[\]-]+")
_SHORT_S, _COPY_S, _ANSWER_S = 60.0, 3600.0, 1800.0
_UNREACHABLE, _DAMAGED, _NO_DEPLOYKIT = 255, 65, 69
_PYTHONS = (
    "python3",
    ".venv/bin/python",
    "venv/bin/python",
    ".local/share/uv/tools/deploykit/bin/python",
    ".local/share/pipx/venvs/deploykit/bin/python",
)
_LOOK = "uname -m; uname -s; getconf _NPROCESSORS_ONLN; cat /proc/cpuinfo 2>/dev/null || true"
_HASH = 'hash() { if command -v sha256sum >/dev/null 2>&1; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }; '
_ARRIVED = "cd {folder} 2>/dev/null || exit 0; hash {names} 2>/dev/null || true"
_ARRIVE = """
set -e; umask 077; mkdir -p {parts} {parent}; part={parts}/{token}; trap 'rm -f "$part"' EXIT
cat > "$part"; [ "$(hash "$part" | cut -c 1-64)" = {digest} ] || exit {damaged}
chmod {mode} "$part"; mv -f "$part" {path}
"""
_SERVE = """
for python in {pythons}; do
  if command -v "$python" >/dev/null 2>&1 && "$python" -c {looks} 2>/dev/null; then "$python" -c {serves}; exit $?; fi
done
exit {absent}
"""


class Ssh(Elsewhere):
    """A machine that `ssh ADDRESS` reaches.

    Args:
        address: as for `ssh`: `user@host`, a host of the user's configuration, or `ssh://user@host:port`. Nothing is
            contacted before an artifact is opened, or asked about.
        python: the Python there that has deploykit; None for `$DEPLOYKIT_BOARD_PYTHON`, or the first that has it of
            `python3` and the virtual environments in the home folder.

    Raises:
        UsageError: it is not an address.
    """

    def __init__(self, address: str, *, python: str | None = None) -> None:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(f"{address!r} is not an address that ssh takes", hint="user@host")
        super().__init__()
        self.address = address
        self._python = python
        self._host: Host | None = None

    def host(self) -> Host:
        """What machine it is; asked once, of its system.

        Raises:
            MissingDependencyError: there is no `ssh` here.
            DeviceError: it cannot be reached, or has no shell as Linux and macOS have.
        """
        if self._host is None:
            said = self._run(_LOOK).stdout.decode(errors="replace")
            arch, system, cores, cpuinfo = (said.split("\n", 3) + [""] * 4)[:4]
            if not cores.isdigit():
                raise DeviceError(f"{self} does not answer like a Linux machine: {said[:200]}", hint=self._hint)
            self._host = Host(arch, isa_in(cpuinfo, arch), int(cores), system)
        return self._host

    def preflight(self, artifact: StoredArtifact, wants: Wants) -> Preflight:
        """See `Place.preflight`."""
        if wants.program is not None:
            return program_preflight(wants.needs, self.host())
        return self.verdict(artifact, wants).preflight

    def evidence(self, artifact: StoredArtifact, wants: Wants) -> Evidence | None:
        """See `Place.evidence`."""
        return None if wants.program is not None else self.verdict(artifact, wants).evidence

    def open(self, artifact: StoredArtifact, wants: Wants, threads: int | None) -> Session:
        """See `Place.open`; what the board has not yet is copied there first."""
        program = wants.program
        if program is None:
            peer = self.start(artifact, wants)
            try:
                folder = self.upload(artifact)
            except BaseException:
                peer.close()
                raise
            return RemoteSession(artifact, peer, {"path": folder, "threads": threads})
        threads = threads or self.host().cores
        words = program.words(self.upload(artifact, program.files), threads)
        what = f"{program.files[0]} of {artifact.path.name}"
        return RemoteSession(artifact, self._peer(shlex.join(words), what), {"threads": threads}, program)

    def upload(self, artifact: StoredArtifact, only: Sequence[str] = ()) -> str:
        """Copy files of an artifact into a folder on the board that holds these files only.

        Args:
            only: names of the files, the first of which is a program; none for the whole artifact.
        Returns:
            The folder's name, relative to the home folder.
        Raises:
            DeviceError: the line was cut, or what arrived is not what was sent.
        """
        digests = {entry.path: entry.sha256 for entry in artifact.manifest.files if not only or entry.path in only}
        if not only:
            digests[layout.MANIFEST_NAME] = sha256_of(artifact.path / layout.MANIFEST_NAME)
        folder = f"{FOLDER}/{hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:32]}"
        there = self._arrived(folder, digests)
        for name, digest in digests.items():
            if (name, digest) not in there:
                self._send(artifact.path / name, f"{folder}/{name}", digest, "700" if name in only[:1] else "600")
        return folder

    def start(self, artifact: StoredArtifact, wants: Wants) -> Peer:
        """See `Elsewhere.start`: the deploykit that is installed on the board."""
        own = self._python or os.environ.get(PYTHON)
        pythons = " ".join(map(shlex.quote, (own,) if own else _PYTHONS))
        looks, serves = shlex.quote(server_code(looks=True)), shlex.quote(server_code())
        script = _SERVE.format(pythons=pythons, looks=looks, serves=serves, absent=_NO_DEPLOYKIT)
        extra = wants.extra
        install = f'on {self}: pip install "deploykit{f"[{extra}]" if extra else ""}=={__version__}"'
        peer = self._peer(script, "deploykit", install)
        try:
            found = str(peer.ask(Frame(frames.HELLO)).facts.get("version", "none"))
            if found.split(".")[:2] != __version__.split(".")[:2]:
                message = f"{self} has deploykit {found}, and this is {__version__}"
                raise DeviceError(message, hint=install)
        except BaseException:
            peer.close()
            raise
        return peer

    def _peer(self, script: str, what: str, install: str = "") -> Peer:
        """What a script starts; its standard input and output are the process's."""
        process = Process(
            self._command(f"{script}\nexit $?"),  # a shell that waits for it says of which signal it died
            what=f"{what} on {self}",
            failed=lambda code, log: self._ended(what, code, log, install),
            timeout_s=time_limit(_ANSWER_S),
        )
        return Peer(process, str(self))

    def _ended(self, what: str, code: int, log: str, install: str) -> DeviceError:
        """How a program on the board ended, by the exit code of its `ssh`."""
        said = log.strip()[-500:]
        if code == _UNREACHABLE:
            message = f"{what} on {self} lost its connection: {self} cannot be reached, or the line was cut"
            return DeviceError(message + (f": {said}" if said else ""), hint=self._hint)
        if code == _NO_DEPLOYKIT:
            hint = f"{install}; or name the Python that has it in ${PYTHON}"
            return DeviceError(f"{self} has no deploykit that this one can talk to", hint=hint)
        if code == OTHER_VERSION:
            return DeviceError(f"the deploykit on {self} cannot serve: {said}", hint=install)
        how, hint = _signal(code)
        message = f"{what} on {self} {how or f'ended with code {code}'}" + (f": {said}" if said and not how else "")
        return DeviceError(message, hint=hint or self._hint)

    def _arrived(self, folder: str, digests: Mapping[str, str]) -> set[tuple[str, str]]:
        """Which files of a folder are on the board already, whole."""
        script = _HASH + _ARRIVED.format(folder=shlex.quote(folder), names=shlex.join(digests))
        lines = self._run(script, timeout_s=_COPY_S).stdout.decode(errors="replace").splitlines()
        parted = (line.partition(" ") for line in lines)
        return {(name[1:], digest) for digest, _, name in parted if name}  # a blank or an asterisk stands before it

    def _send(self, source: Path, path: str, digest: str, mode: str) -> None:
        quoted = {"parts": f"{FOLDER}/parts", "parent": path.rpartition("/")[0], "token": secrets.token_hex(8)}
        words = {**quoted, "path": path, "digest": digest, "damaged": str(_DAMAGED), "mode": mode}
        script = _HASH + _ARRIVE.format(**{name: shlex.quote(word) for name, word in words.items()})
        with source.open("rb") as file:
            done = self._run(script, stdin=file.fileno(), timeout_s=_COPY_S, check=False)
        if done.returncode == _DAMAGED:
            raise DeviceError(f"{source.name} arrived damaged on {self}; nothing was kept", hint="try again")
        self._check(done)

    def _run(
        self, script: str, *, stdin: int = subprocess.DEVNULL, timeout_s: float = _SHORT_S, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        command = self._command(script)
        try:
            done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self} did not answer within {timeout_s:g} s", hint=self._hint) from error
        except OSError as error:
            raise DeviceError(f"ssh cannot be started: {error}", hint=SSH.install_command) from error
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
        return [SSH.find(), *options, "--", self.address, shlex.join(["sh", "-c", f"cd; {script}"])]

    def __str__(self) -> str:
        return self.address


def _signal(code: int) -> tuple[str, str]:
    """What a shell's exit code says of a signal, and what to do; "" where there was none."""
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return "", ""
    if name == "SIGKILL":
        return f"was killed by {name}: by the system for lack of memory, or by somebody", "close other programs there"
    return f"was killed by {name}" + (
        ": the CPU lacks an instruction" if name == "SIGILL" else ""
    ), "export it for that CPU"
