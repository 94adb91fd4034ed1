"""Calibration data is read by code of users and from files of theirs: what goes wrong there is told as theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploykit.contract.errors import CalibrationError, DeploykitError


def guarded(make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Iterate user code; what it raises becomes a CalibrationError that says at which batch."""
    count = 0
    try:
        for batch in make():
            yield batch
            count += 1
    except DeploykitError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"the calibration data failed at batch {count}: {type(error).__name__}: {error}",
            hint="iterate over it once without deploykit to see the fault",
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong while a file of calibration data is read is a CalibrationError that names it.

    One that is raised inside is passed on as it is.
    """
    try:
        yield
    except CalibrationError:
        raise
    except DeploykitError as error:  # not there, no file, too large: it says what to do
        raise CalibrationError(
            f"{path}: cannot read this calibration file: {error.message}", hint=error.hint
        ) from error
    except Exception as error:  # zip, npy and safetensors raise a dozen kinds
        hint = "write it again, as numpy.savez or safetensors do, with an array per input"
        raise CalibrationError(f"{path}: cannot read this calibration file: {error}", hint=hint) from error
