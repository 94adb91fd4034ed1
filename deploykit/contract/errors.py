"""Every error that deploykit raises on purpose, in one tree.

    DeploykitError                 exit code 1
    ├── UsageError                 2   an argument is missing, malformed or contradicts another
    │   └── UnknownTargetError     2   no registered toolchain or device has that name
    ├── UnsupportedPrecisionError  3   the target (or its silicon) has no such precision
    ├── MissingDependencyError     3   a package is not installed; carries the command that installs it
    ├── ConversionError            4   a converter refused or crashed
    │   └── CaptureError           4   PyTorch could not trace the model into a graph
    ├── CalibrationError           5   calibration data is missing, empty, malformed or not finite
    ├── GateError                  -   an artifact was made and missed a gate; carries it as `candidate`
    │   ├── ParityError            6   it differs from the model by more than the gate allows
    │   ├── PerformanceError       7   it missed a speed or size goal
    │   └── PlacementError         8   less of it than asked runs where or as it was asked
    ├── ArtifactError              9   a saved artifact is damaged, unsafe, too new, or cannot be written
    └── DeviceError               10   the device, driver or board is not reachable, or lacks what an artifact needs

A message says what went wrong, where (layer and source line), and what to do next. Errors are values of
the API: the exit codes are those of the command line, and are stable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class DeploykitError(Exception):
    """Base of all errors raised on purpose; `except DeploykitError` catches every one.

    Args:
        message: what went wrong and where.
        hint: what the user can do next; shown on a line of its own.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n  -> {hint}")
        self.message = message
        self.hint = hint


class UsageError(DeploykitError):
    """An argument is missing, malformed, or contradicts another."""

    exit_code = 2


class UnknownTargetError(UsageError):
    """No registered toolchain or device has the name that was asked for."""


class UnsupportedPrecisionError(DeploykitError):
    """The target, or the silicon of the device, does not have the precision; the message lists those it has."""

    exit_code = 3


class MissingDependencyError(DeploykitError):
    """A package that this step needs is not installed.

    Args:
        package: the import name that failed.
        extra: the extra of deploykit that brings it, for the pip command in the message.
        purpose: what needed it, as the end of "... is needed to".
        distribution: the distribution that has the extra, where it is a third party's.
        command: the command that installs it, where that is not pip.
        outdated: it is installed, and does not fit; `purpose` then says how.
    """

    exit_code = 3

    def __init__(
        self,
        package: str,
        *,
        extra: str,
        purpose: str,
        distribution: str = "deploykit",
        command: str | None = None,
        outdated: bool = False,
    ) -> None:
        self.package = package
        from deploykit.contract.installed import here_command

        self.command = command or here_command(extra, distribution)
        needed = f"another version of {package}" if outdated else package
        absent = "" if outdated else ", and is not installed"
        super().__init__(f"{needed} is needed to {purpose}{absent}", hint=self.command)


def install_command(extra: str, distribution: str = "deploykit") -> str:
    """The pip command that installs `distribution` with `extra` ("" for none) from an index, on any machine.

    For records that travel, such as an artifact's notes; errors say what works here (`installed.here_command`).
    """
    return f'pip install "{distribution}[{extra}]"' if extra else f"pip install {distribution}"


class ConversionError(DeploykitError):
    """A converter refused the model or crashed; the message names op, module path and source line where known."""

    exit_code = 4


class CaptureError(ConversionError):
    """PyTorch could not trace the model; the message names op, module path, source line and what to try."""


class CalibrationError(DeploykitError):
    """Calibration data is missing, empty, malformed or not finite; or a table does not belong to the model."""

    exit_code = 5


class GateError(DeploykitError):
    """An artifact was made but missed a gate.

    Attributes:
        candidate: the artifact, kept on disk and marked failed; None where none was written.
        ladder: every step that `deploykit.tune` tried; empty where nothing was searched.
    """

    def __init__(self, message: str, *, candidate: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.candidate = candidate
        self.ladder: Sequence[Any] = ()


class ParityError(GateError):
    """The artifact's outputs differ from the model's by more than the gate allows.

    Attributes:
        report: the full chain of comparisons; None where the artifact could not be run to the end.
        candidate, ladder: as in `GateError`.
    """

    exit_code = 6

    def __init__(
        self,
        message: str,
        *,
        report: Any = None,
        candidate: Any = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, candidate=candidate, hint=hint)
        self.report = report


class PerformanceError(GateError):
    """A speed or size goal was missed; the message gives goal and measured figure."""

    exit_code = 7


class PlacementError(GateError):
    """Less of the model than asked runs in the asked precision or on the asked accelerator."""

    exit_code = 8


class ArtifactError(DeploykitError):
    """A saved artifact is damaged, unsafe or of a newer schema, or a new one cannot be written."""

    exit_code = 9


class DeviceError(DeploykitError):
    """The device, its driver, or the board is not reachable, or it lacks what an artifact needs."""

    exit_code = 10


def reason_of(error: Exception) -> str:
    """What the system says of a failed call, without its number and the path; the text of other exceptions."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
