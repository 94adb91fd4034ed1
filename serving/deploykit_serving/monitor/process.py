"""Processor time and memory of a process and of its children, through psutil."""

from __future__ import annotations

from deploykit_serving.monitor.reading import Absent, Found, Reading

_SOURCE = "psutil"


class ProcessSource:
    """A process.

    Args:
        pid: None for this one.
    """

    def __init__(self, pid: int | None = None) -> None:
        import psutil

        self._process = psutil.Process(pid)

    def read(self) -> Found:
        """Processor seconds, resident bytes and threads, children included."""
        import psutil

        seconds, resident, threads = 0.0, 0, 0
        try:
            for each in (self._process, *self._process.children(recursive=True)):
                with each.oneshot():
                    times = each.cpu_times()
                    seconds += times.user + times.system
                    resident += each.memory_info().rss
                    threads += each.num_threads()
        except psutil.Error as error:
            return (), (Absent("process", f"{_SOURCE}: {error}"),)
        of = str(self._process.pid)
        return (
            Reading("process_cpu_seconds", of, seconds, _SOURCE, counts=True, help="Processor time, children included"),
            Reading("process_resident_bytes", of, resident, _SOURCE, help="Resident memory, children included"),
            Reading("process_threads", of, threads, _SOURCE, help="Threads, children included"),
        ), ()
