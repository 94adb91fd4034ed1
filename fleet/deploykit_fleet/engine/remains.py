"""Ending what is left of a release: every process that has its mark in the environment, or its files open.

Agents of Ray outlive the process that started them by minutes, belong to no group of ours, and write their titles over
their environment. The mark they had from us, and the folder of Ray's files they still have open.
"""

from __future__ import annotations

import os
import time
from typing import Any

from deploykit_fleet.engine.child import MARK

_TIMEOUT_S = 10.0
_PAUSE_S = 0.05


def marked(mark: str, folder: str = "") -> list[int]:
    """Processes of this user with that mark, or with a file below `folder` open; never this one or its parents."""
    import psutil

    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in spared and (process.environ().get(MARK) == mark or _uses(process, folder)):
                found.append(process.pid)
        except (psutil.Error, OSError):  # gone, or somebody else's
            continue
    return found


def _uses(process: Any, folder: str) -> bool:
    return bool(folder) and any(file.path.startswith(f"{folder}{os.sep}") for file in process.open_files())


def end_marked(mark: str, folder: str = "") -> None:
    """End them, and those that they start meanwhile; returns when none is left."""
    end = time.monotonic() + _TIMEOUT_S
    while _kill(marked(mark, folder)) and time.monotonic() < end:
        time.sleep(_PAUSE_S)


def _kill(found: list[int]) -> bool:
    """Whether any of them may still be there; what has ended and waits for its parent is not."""
    import psutil

    left = False
    for pid in found:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                left = True
        except psutil.Error:
            continue
    return left
