"""Risky native code in a Python process of its own: it may print, change global state, crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import IO


def start_module(module: ModuleType, folder: Path, *, log: IO[bytes], answers: bool = False) -> subprocess.Popen[bytes]:
    """Start `python -m module folder`, which imports from where this process does.

    Args:
        module: its `main` takes the folder.
        folder: shared with the child.
        log: takes what it prints.
        answers: whether its standard output is read by us, instead of going into the log.
    Returns:
        The process, with a pipe to its standard input.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", module.__name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if answers else log,
        stderr=log,
        env=environment,
    )
