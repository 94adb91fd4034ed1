"""Resident memory: of this process, now and at its peak, and of a fresh one that runs an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.contract.errors import DeploykitError

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

_TIMEOUT_S = 120.0


def resident_bytes() -> int:
    """What is resident now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The most that was resident since this program began.

    On Linux from VmHWM, because `ru_maxrss` of a child also counts what its parent had before the exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory_bytes(artifact: StoredArtifact) -> int | None:
    """Growth of resident memory of a fresh process while it opens and runs an artifact on its golden inputs.

    A process of its own, because the exporting one holds PyTorch and the float model. None where it cannot be run.
    """
    from deploykit.places.peer import Wants
    from deploykit.places.place import Child

    try:
        with Child(timeout_s=_TIMEOUT_S).open(artifact, Wants(), None) as session:
            for feeds in artifact.golden().inputs:
                session.times_ms(feeds, runs=2)
            return session.peak_memory_bytes
    except DeploykitError:
        return None
