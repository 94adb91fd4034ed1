"""Run a build program in a child process: a vendor library that crashes must not take deploykit with it.

The child may be another Python than ours: boards bring their vendor's bindings for the system's Python only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.contract.errors import (
    ArtifactError,
    ConversionError,
    DeploykitError,
    DeviceError,
    MissingDependencyError,
    ParityError,
    PlacementError,
    UsageError,
)
from deploykit.places import frames
from deploykit.places.process import code_command, ending
from deploykit_targets._on_device.board import LIFELINE

_FINDS = "import importlib.util as u; sys.exit(not all(u.find_spec(m) for m in sys.argv[1:]))"
# Python would also take a compiled `board` of `__pycache__`, and any module beside the program.
_RUNS = """import os, runpy, types
del sys.argv[0]
frames = sys.argv.pop(0)
for name, path in (("frames", frames), ("board", os.path.join(os.path.dirname(sys.argv[0]), "board.py"))):
    if os.path.isfile(path):
        sys.modules[name] = module = types.ModuleType(name)
        module.__file__ = path
        with open(path, "rb") as file:
            exec(compile(file.read(), path, "exec"), module.__dict__)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SYSTEM_PYTHON = "/usr/bin/python3"
_ERRORS: Mapping[int, type[DeploykitError]] = {
    2: UsageError,
    4: ConversionError,
    8: PlacementError,
    9: ArtifactError,
    10: DeviceError,
}
_BUILD_TIMEOUT_S = 4 * 3600.0  # an exhaustive search on a small board takes hours


def interpreter_with(module: str, *more: str) -> str | None:
    """A Python that has `module` and `more` installed: ours, or the system's; None where neither has."""
    return interpreter_where(_FINDS, module, *more)


@functools.cache
def interpreter_where(code: str, *arguments: str) -> str | None:
    """A Python that runs `code` to exit code 0: ours, or the system's; None where neither does."""
    for python in dict.fromkeys((sys.executable, SYSTEM_PYTHON)):
        try:
            done = subprocess.run(code_command(python, code, *arguments), capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            return python
    return None


def program_command(program: Path, arguments: Sequence[str], *, python: str | None) -> list[str]:
    """The command line that runs a build program: of its folder its two files alone, from their source.

    The module of frames is this deploykit's, for a build program that serves.

    Args:
        program: the build program inside an artifact.
        arguments: the arguments of its command line.
        python: interpreter; None for ours.
    """
    return code_command(python or sys.executable, _RUNS, str(frames.__file__), program, *arguments)


def run_build_program(program: Path, arguments: Sequence[str], *, python: str | None, toolchain: str) -> dict[str, Any]:
    """Run a build program to its end, or to ours: it does not outlive this process, whatever ends that.

    Args:
        program: the build program inside an artifact.
        arguments: the arguments of its command line.
        python: interpreter; None for ours.
        toolchain: for messages.
    Returns:
        Its report; what it printed to stderr is under `"log"`.
    Raises:
        DeviceError: no driver or device, or the vendor library crashed.
        MissingDependencyError: the vendor library is not installed.
        ConversionError, UsageError, ArtifactError: as the build program said.
    """
    command = program_command(program, arguments, python=python)
    try:
        with _lifeline() as (stdin, env):
            done = subprocess.run(
                command, stdin=stdin, env=env, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"{program.name} cannot be run: {error}") from error
    answer = _last_json(done.stdout)
    # Whether the golden outputs are reproduced, the caller finds out itself, with its own gate and report.
    built = done.returncode in (0, ParityError.exit_code) and "error" not in (answer or {"error": ""})
    if built and answer is not None:
        return {**answer, "log": done.stderr}
    raise failure_of(answer, done.returncode, done.stderr, toolchain=toolchain)


@contextlib.contextmanager
def _lifeline() -> Iterator[tuple[int, dict[str, str]]]:
    """The stdin and the environment of a child that ends when this process does.

    A pipe that we hold open says so for every end (SIGTERM and SIGKILL run no code of ours), and from any thread.
    """
    reading, writing = os.pipe()
    try:
        yield reading, {**os.environ, LIFELINE: "1"}
    finally:
        os.close(reading)
        os.close(writing)


def failure_of(answer: Mapping[str, Any] | None, returncode: int, log: str, *, toolchain: str) -> DeploykitError:
    """The error that a build program's answer, or its death, stands for."""
    if answer is None or "error" not in answer:
        if returncode == UsageError.exit_code and log.strip():  # the argument parser's own words
            return UsageError(log.strip().splitlines()[-1])
        return DeviceError(f"the {toolchain} process {ending(returncode)}", hint=log[-1500:] or None)
    if answer["code"] == 3:
        extra, hint = f"{toolchain}-build", answer["hint"] or None
        error = MissingDependencyError(toolchain, extra=extra, purpose="build and run on the device", command=hint)
        error.add_note(answer["error"])
        return error
    return _ERRORS.get(answer["code"], DeviceError)(answer["error"], hint=answer["hint"] or None)


def _last_json(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None
