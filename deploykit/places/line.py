"""`Line`: how a shell script is started on another machine, and what its ends and its silence mean.

A line knows the user's own program for it (`ssh`, `adb`) and nothing of deploykit. What it is given to name a machine
is checked here: nothing that a user, or a file, gives can be read as an option of that program.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
from abc import ABC, abstractmethod

from deploykit.contract.errors import DeviceError
from deploykit.contract.optional import SystemTool

SHORT_S, COPY_S = 60.0, 3600.0


class LostError(DeviceError):
    """The machine cannot be reached, or the line was cut: what was asked may have been done or not."""


class Line(ABC):
    """A way to a shell of another machine.

    Args:
        name: the name of the machine, for messages.
        tool: the program that is started here.
        home: the folder that scripts begin in, as a word of the shell; "" for the account's own.
    """

    def __init__(self, name: str, tool: SystemTool, *, home: str = "") -> None:
        self.name, self.tool, self.home = name, tool, home

    @property
    @abstractmethod
    def hint(self) -> str:
        """What a user tries by hand where the line fails."""

    @abstractmethod
    def words(self) -> list[str]:
        """The command line that a script for the shell there is put behind, as one word.

        Raises:
            MissingDependencyError: the program is not installed here.
        """

    @abstractmethod
    def is_lost(self, code: int, said: str) -> bool:
        """Whether the program's exit code and standard error mean the line, and not the script."""

    def close(self) -> None:  # noqa: B027 - a line that keeps nothing open leaves it empty
        """End what is kept open between commands; the next one opens it again."""

    def command(self, script: str) -> list[str]:
        """The command line that runs a script there, in the home folder."""
        return [*self.words(), shlex.join(["sh", "-c", f"cd{self.home and f' {self.home}'}; {script}"])]

    def run(
        self, script: str, *, data: bytes | None = None, timeout_s: float = SHORT_S, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a script to its end.

        Args:
            data: for its standard input; None for none.
            timeout_s: how long it may take.
            check: raise where the script refuses, too.
        Raises:
            LostError: the machine cannot be reached, or the line was cut.
            DeviceError: it refused.
        """
        command = self.command(script)
        nothing = subprocess.DEVNULL if data is None else None
        try:
            done = subprocess.run(
                command, stdin=nothing, input=data, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LostError(f"{self.name} did not answer within {timeout_s:g} s", hint=self.hint) from error
        except OSError as error:
            message = f"{self.tool.command} cannot be started: {error}"
            raise DeviceError(message, hint=self.tool.install_command) from error
        self.check(done, refused=check)
        return done

    def check(self, done: subprocess.CompletedProcess[bytes], *, refused: bool = True) -> None:
        """Turn a failure into an error; one of the script only where `refused` says so."""
        if not done.returncode:
            return
        said = done.stderr.decode(errors="replace").strip()[-500:]
        told = said or f"{self.tool.command} ended with code {done.returncode}"
        if self.is_lost(done.returncode, said):
            message = f"{self.name} cannot be reached, or the line was cut: {told}"
            raise LostError(message, hint=self.hint)
        if refused:
            raise DeviceError(f"{self.name} refused a command: {told}", hint=self.hint)

    def __str__(self) -> str:
        return self.name


def signal_of(code: int) -> tuple[str, str]:
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
