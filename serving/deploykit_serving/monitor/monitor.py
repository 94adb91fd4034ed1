"""`Monitor`: all sources of a machine, read together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from deploykit_serving.monitor.jetson import JetsonSource
from deploykit_serving.monitor.nvml import NvmlSource
from deploykit_serving.monitor.process import ProcessSource
from deploykit_serving.monitor.rapl import RaplSource
from deploykit_serving.monitor.reading import Absent, Reading, Snapshot, Source
from deploykit_serving.monitor.thermal import ThermalSource


class Monitor:
    """Sources that are read one after the other; for any number of threads.

    Args:
        sources: which.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._lock = threading.Lock()

    @classmethod
    def here(cls, root: Path = Path("/"), *, pid: int | None = None) -> Monitor:
        """Everything that this machine may have.

        Args:
            root: folder that holds `sys` and `proc`.
            pid: of the process whose time and memory are read; None for this one.
        """
        return cls((ProcessSource(pid), NvmlSource(), JetsonSource(root), RaplSource(root), ThermalSource(root)))

    def snapshot(self) -> Snapshot:
        """Read all sources."""
        readings: list[Reading] = []
        absent: list[Absent] = []
        with self._lock:
            at_s = time.perf_counter()
            for source in self._sources:
                found, missing = source.read()
                readings += found
                absent += missing
        return Snapshot(at_s, tuple(readings), tuple(absent))
