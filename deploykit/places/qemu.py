"""`Qemu`: QEMU's user-mode emulator runs a program on this machine as the exact CPU of another.

It proves that results are right and that the CPU has every instruction; how long anything takes under it means nothing.
A program that dies of an instruction that the CPU lacks becomes an error that says so.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from deploykit.contract.errors import DeviceError
from deploykit.contract.host import this_host
from deploykit.contract.optional import SystemTool
from deploykit.places.peer import BoardProgram, Peer, RemoteSession, Wants
from deploykit.places.place import SERVER, Elsewhere, opening, program_preflight
from deploykit.places.process import EndedError, Process, ending, import_path, module_command, server_code, time_limit

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.requirements import Preflight
    from deploykit.contract.session import OpTime, Session
    from deploykit.contract.tensors import Feeds
    from deploykit.places.arm_root import ArmRoot

EMULATOR = SystemTool("qemu-aarch64-static", "qemu-user-static", "run code for Arm boards on this machine")
_X86 = SystemTool("qemu-x86_64-static", "qemu-user-static", "run as another x86 CPU on this machine")
DEFAULT_TIMEOUT_S = 600.0
_ANSWER_S = 1800.0  # a ResNet-50 is some hundred times slower than on the board

_LACKS = {
    "cortex-a72": "no dot products (dotprod), no 16-bit float arithmetic (fp16), no i8mm, no SVE",
    "cortex-a76": "no i8mm, no bf16, no SVE",
    "neoverse-n1": "no i8mm, no bf16, no SVE",
    "neoverse-v1": "no SVE2",
}
_LOG_CHARACTERS = 1500


@dataclass(frozen=True)
class Emulator:
    """How to start programs on an emulated CPU.

    Attributes:
        cpu: QEMU's name, such as `cortex-a76`.
        root: folder with the libraries of a dynamically linked program; None for a static one.
        environment: what the program sees besides `PATH`; never this process's own, whose paths are another machine's.
        tool: QEMU of the architecture.
    """

    cpu: str
    root: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    tool: SystemTool = EMULATOR

    def command(self, program: str | Path, *arguments: str | Path) -> list[str]:
        """The command line that starts a program.

        Raises:
            MissingDependencyError: QEMU is not installed.
        """
        options = ["-L", str(self.root)] if self.root else []
        options += [part for name, value in self.environment.items() for part in ("-E", f"{name}={value}")]
        return [self.tool.find(), "-cpu", self.cpu, *options, str(program), *map(str, arguments)]

    def run(
        self, program: str | Path, *arguments: str | Path, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Returns:
            Its output and exit code, which may be other than 0.
        Raises:
            MissingDependencyError: QEMU is not installed.
            DeviceError: it crashed, or did not end in time.
        """
        command = self.command(program, *arguments)
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                env=bare_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{Path(program).name} did not end within {timeout_s:g} s on {self}") from error
        except OSError as error:
            raise DeviceError(f"{command[0]} cannot be started: {error}") from error
        if crash := crash_of(done.returncode, self.cpu):
            raise DeviceError(f"{Path(program).name} {crash}", hint=done.stderr[-_LOG_CHARACTERS:].strip() or None)
        return done

    def __str__(self) -> str:
        return f"an emulated {self.cpu}"


class Qemu(Elsewhere):
    """An emulated CPU: of a program that an artifact brings for it, or of this Python, or of one of another machine.

    Results count, and times do not: profiles are estimates.

    Args:
        cpus: QEMU's names, best first, such as `cortex-a72` or `Haswell`; the first that the installed QEMU knows.
        root: an arm64 Python with what the artifact's runtime needs; see `arm_root`. None for this Python (an x86 CPU).
    """

    is_emulated: ClassVar[bool] = True

    def __init__(self, *cpus: str, root: ArmRoot | None = None) -> None:
        super().__init__()
        self._cpus, self._root = cpus, root

    @functools.cached_property
    def emulator(self) -> Emulator:
        """What starts programs.

        Raises:
            MissingDependencyError: QEMU is not installed.
            DeviceError: it knows none of the CPUs.
        """
        found = emulator_for(self._cpus)
        return found if self._root is None else self._root.emulator(found.cpu)

    def preflight(self, artifact: StoredArtifact, wants: Wants) -> Preflight:
        """See `Place.preflight`; a program looks itself at what the CPU has."""
        if wants.program is not None:
            note = f"code for {artifact.manifest.device} is run in QEMU: right results, and no times"
            return replace(
                program_preflight(replace(wants.needs, arch=(), isa=(), os=()), this_host()),
                notes=(note,),
                native=False,
            )
        return self.verdict(artifact, wants).preflight

    def open(self, artifact: StoredArtifact, wants: Wants, threads: int | None) -> Session:
        """See `Place.open`."""
        program = wants.program
        if program is None:
            return RemoteSession(artifact, self.start(artifact, wants), opening(artifact, threads))
        threads = threads or this_host().cores
        words, scratch = program.words(str(artifact.path), threads), contextlib.ExitStack()
        try:
            command = self.emulator.command(executable(Path(words[0]), scratch), *words[1:])
            peer = self._peer(command, f"{program.files[0]} of {artifact.path.name}")
            return _EmulatedSession(artifact, peer, {"threads": threads}, program, scratch)
        except BaseException:
            scratch.close()
            raise

    def start(self, artifact: StoredArtifact, wants: Wants) -> Peer:
        """See `Elsewhere.start`: the server of this Python, or of the root's, on the emulated CPU."""
        if self._root is None:
            command = self.emulator.command(*module_command(SERVER))
        else:
            paths = [str(self._root.path / "site"), *import_path(SERVER)]
            code = f"import sys; sys.path[:0] = {paths!r}\n" + server_code()
            command = self.emulator.command(self._root.program, "-c", code)
        return self._peer(command, f"the process of {artifact.path.name}")

    def _peer(self, command: list[str], what: str) -> Peer:
        process = Process(
            command,
            what=what,
            failed=lambda code, log: EndedError(what, crash_of(code, self.emulator.cpu) or ending(code), log.strip()),
            environment=bare_environment(),
            timeout_s=time_limit(_ANSWER_S),
        )
        return Peer(process)

    def __str__(self) -> str:
        return str(self.emulator)


class _EmulatedSession(RemoteSession):
    """A program under emulation, which tells no times: they would say nothing about the board."""

    def __init__(
        self,
        artifact: StoredArtifact,
        peer: Peer,
        asked: Mapping[str, Any],
        program: BoardProgram,
        scratch: contextlib.ExitStack,
    ) -> None:
        super().__init__(artifact, peer, asked, program)
        self._scratch = scratch

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        return ()

    def _close(self) -> None:
        super()._close()
        self._scratch.close()


def executable(program: Path, scratch: contextlib.ExitStack) -> Path:
    """The program, or a copy that may be executed: archives and copies lose that permission."""
    if os.access(program, os.X_OK) or not program.is_file():
        return program
    copy = Path(scratch.enter_context(tempfile.TemporaryDirectory())) / program.name
    shutil.copyfile(program, copy)
    copy.chmod(0o700)
    return copy


def bare_environment() -> dict[str, str]:
    """The environment of an emulator's process: nothing of this machine's Python or libraries reaches the program."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}


def crash_of(returncode: int, cpu: str) -> str:
    """What an exit code says about a crash, as the end of a sentence; "" where there was none.

    QEMU dies of the signal that killed its program; a shell in between adds 128.
    """
    number = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else 0
    try:
        name = signal.Signals(number).name
    except ValueError:
        return ""
    if name == "SIGILL":
        lacks = _LACKS.get(cpu)
        return f"used an instruction that {cpu} does not have" + (f" (it has {lacks})" if lacks else "")
    return f"was killed by {name} on an emulated {cpu}"


def emulator_for(cpus: Sequence[str]) -> Emulator:
    """An emulator of the first of `cpus` that the installed QEMU knows, of either architecture.

    Raises:
        MissingDependencyError: QEMU is not installed.
        DeviceError: it knows none of them.
    """
    tools = [EMULATOR, *([_X86] if _X86.installed else [])]
    for cpu in cpus:
        for tool in tools:
            if cpu in known_cpus(tool.find()):
                return Emulator(cpu, tool=tool)
    raise DeviceError(f"this QEMU emulates none of {', '.join(cpus)}", hint="install a newer qemu-user-static")


@functools.cache
def known_cpus(emulator: str) -> frozenset[str]:
    """Names of the CPUs that a QEMU emulates."""
    done = subprocess.run([emulator, "-cpu", "help"], capture_output=True, text=True, timeout=60, check=False)
    return frozenset(word.strip("'") for word in done.stdout.split())
