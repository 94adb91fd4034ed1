"""`Board`: another machine behind a `Line`: artifacts are copied there, and opened there.

Using a board executes code there: the artifact is copied to it and opened by the deploykit that is installed there, or,
where it brings a program of its own, that program is started. The address is always the user's. Files land under a
temporary name, are hashed on the board, and only then get their own name, so that a cut line leaves nothing that looks
whole. A file that is there already, with the right hash, is not sent again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploykit._version import __version__
from deploykit.artifact import manifest as layout
from deploykit.artifact.storage import sha256_of
from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.host import Host, isa_in
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.line import Line, LostError, signal_of
from deploykit.places.peer import Peer, RemoteSession, Wants
from deploykit.places.place import SERVER, Elsewhere, program_preflight
from deploykit.places.process import OTHER_VERSION, Process, server_code, time_limit
from deploykit.places.transfer import FOLDER, Transfer

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.precision import Evidence
    from deploykit.contract.requirements import Preflight
    from deploykit.contract.session import Session

PYTHON = "DEPLOYKIT_BOARD_PYTHON"
"""Environment variable: the Python on boards that has deploykit, where it is none of those that are looked for."""

_ANSWER_S = 1800.0
NO_DEPLOYKIT = 69
"""Exit code of `Board.serving` where no Python there has deploykit."""
_PROGRAM = re.compile(r"(?!-)[^\x00-\x1f\x7f]+")
_PYTHONS = (
    "python3",
    ".venv/bin/python",
    "venv/bin/python",
    ".local/share/uv/tools/deploykit/bin/python",
    ".local/share/pipx/venvs/deploykit/bin/python",
)
_LOOK = "uname -m; uname -s; getconf _NPROCESSORS_ONLN 2>/dev/null || nproc; cat /proc/cpuinfo 2>/dev/null || true"
_SERVE = """
for python in {pythons}; do
  if command -v "$python" >/dev/null 2>&1 && "$python" -c {looks} 2>/dev/null; then "$python" -c {serves}; exit $?; fi
done
exit {absent}
"""


class Board(Elsewhere):
    """Another machine.

    Args:
        line: the line to its shell. Nothing is contacted before an artifact is opened, or asked about.
        python: the Python there that has deploykit; None for `$DEPLOYKIT_BOARD_PYTHON`, or the first that has it of
            `python3` and the virtual environments in the home folder.

    Attributes:
        transfer: what copies files there.

    Raises:
        UsageError: `python` is not the name of a program.
    """

    def __init__(self, line: Line, *, python: str | None = None) -> None:
        if python is not None and not _PROGRAM.fullmatch(python):
            raise UsageError(f"{python!r} is not the name of a Python", hint="such as /opt/venv/bin/python")
        super().__init__()
        self.line, self.transfer = line, Transfer(line)
        self._python = python
        self._host: Host | None = None

    def host(self) -> Host:
        """What machine it is; asked once, of its system.

        Raises:
            MissingDependencyError: the program for the line is not installed here.
            DeviceError: it cannot be reached, or has no shell as Linux and macOS have.
        """
        if self._host is None:
            said = self.line.run(_LOOK).stdout.decode(errors="replace")
            arch, system, cores, cpuinfo = (said.split("\n", 3) + [""] * 4)[:4]
            if not cores.isdecimal():
                message = f"{self} does not answer like a Linux machine: {said[:200]}"
                raise DeviceError(message, hint=self.line.hint)
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
        for name in self.transfer.missing(folder, digests):
            mode = "700" if name in only[:1] else "600"
            self.transfer.send(artifact.path / name, f"{folder}/{name}", digests[name], mode=mode)
        return folder

    def start(self, artifact: StoredArtifact, wants: Wants) -> Peer:
        """See `Elsewhere.start`: the deploykit that is installed on the board."""
        return self.server(extra=wants.extra)

    def server(self, module: str = SERVER, *, extra: str = "") -> Peer:
        """The deploykit that is installed on the board, of this version, with nothing open.

        Args:
            module: the module whose `main` serves the session protocol.
            extra: the extra of deploykit that brings the runtime, for messages.
        Raises:
            DeviceError: there is none there, or one of another version.
        """
        install = self.install_command(extra)
        peer = self._peer(self.serving(module), "deploykit", install)
        try:
            found = str(peer.ask(Frame(frames.HELLO)).facts.get("version", "none"))
            if found.split(".")[:2] != __version__.split(".")[:2]:
                message = f"{self} has deploykit {found}, and this is {__version__}"
                raise DeviceError(message, hint=install)
        except BaseException:
            peer.close()
            raise
        return peer

    def serving(self, module: str = SERVER) -> str:
        """The script that serves the session protocol with the first Python there that has deploykit."""
        own = self._python or os.environ.get(PYTHON)
        pythons = " ".join(map(shlex.quote, (own,) if own else _PYTHONS))
        looks, serves = shlex.quote(server_code(looks=True)), shlex.quote(server_code(module))
        return _SERVE.format(pythons=pythons, looks=looks, serves=serves, absent=NO_DEPLOYKIT)

    def install_command(self, extra: str = "") -> str:
        """What installs this deploykit there."""
        return f'on {self}: pip install "deploykit{f"[{extra}]" if extra else ""}=={__version__}"'

    def _peer(self, script: str, what: str, install: str = "") -> Peer:
        """What a script starts; its standard input and output are the process's."""
        process = Process(
            self.line.command(f"{script}\nexit $?"),  # a shell that waits for it says of which signal it died
            what=f"{what} on {self}",
            failed=lambda code, log: self.ended(what, code, log, install),
            timeout_s=time_limit(_ANSWER_S),
        )
        return Peer(process, str(self))

    def ended(self, what: str, code: int, log: str, install: str = "") -> DeviceError:
        """How a program on the board ended, by the exit code of its line.

        Args:
            what: it was.
            code, log: exit code, and what it printed to standard error.
            install: what installs it.
        """
        said, hint = log.strip()[-500:], self.line.hint
        if self.line.is_lost(code, said):
            message = f"{what} on {self} lost its connection: {self} cannot be reached, or the line was cut"
            return LostError(message + (f": {said}" if said else ""), hint=hint)
        if code == NO_DEPLOYKIT:
            other = f"{install}; or name the Python that has it in ${PYTHON}"
            return DeviceError(f"{self} has no deploykit that this one can talk to", hint=other)
        if code == OTHER_VERSION:
            return DeviceError(f"the deploykit on {self} cannot serve: {said}", hint=install)
        how, why = signal_of(code)
        message = f"{what} on {self} {how or f'ended with code {code}'}" + (f": {said}" if said and not how else "")
        return DeviceError(message, hint=why or hint)

    def __str__(self) -> str:
        return str(self.line)
