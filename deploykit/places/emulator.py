"""QEMU's user-mode emulator: runs an aarch64 program on this machine as the exact CPU of a board.

It proves that results are right and that the CPU has every instruction; how long anything takes under it means nothing.
A program that dies of an instruction that the CPU lacks becomes an error that says so.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploykit.contract.errors import DeviceError
from deploykit.contract.optional import SystemTool

EMULATOR = SystemTool("qemu-aarch64-static", "qemu-user-static", "run code for Arm boards on this machine")
DEFAULT_TIMEOUT_S = 600.0

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
    """

    cpu: str
    root: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, program: str | Path, *arguments: str | Path) -> list[str]:
        """The command line that starts a program.

        Raises:
            MissingDependencyError: QEMU is not installed.
        """
        options = ["-L", str(self.root)] if self.root else []
        options += [part for name, value in self.environment.items() for part in ("-E", f"{name}={value}")]
        return [EMULATOR.find(), "-cpu", self.cpu, *options, str(program), *map(str, arguments)]

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


def bare_environment() -> dict[str, str]:
    """For an emulator's process: nothing of this machine's Python or libraries reaches the program."""
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
    """An emulator of the first of `cpus` that the installed QEMU knows.

    Raises:
        MissingDependencyError: QEMU is not installed.
        DeviceError: it knows none of them.
    """
    known = known_cpus(EMULATOR.find())
    for cpu in cpus:
        if cpu in known:
            return Emulator(cpu)
    raise DeviceError(f"this QEMU emulates none of {', '.join(cpus)}", hint="install a newer qemu-user-static")


@functools.cache
def known_cpus(emulator: str) -> frozenset[str]:
    """Names of the CPUs that a QEMU emulates."""
    done = subprocess.run([emulator, "-cpu", "help"], capture_output=True, text=True, timeout=60, check=False)
    return frozenset(done.stdout.split())
