"""Jobs side by side in processes of this machine, or one after another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from deploykit_fleet.engine.attend import attend
from deploykit_fleet.engine.child import Children
from deploykit_fleet.engine.jobs import Job
from deploykit_fleet.outcome import Cell

Done = tuple[Job, list[Cell]]


def run(jobs: Sequence[Job], children: Children, *, at_once: int, retries: int) -> Iterator[Done]:
    """Do jobs, at most `at_once` at a time, those with most cells first.

    Args:
        children: starts the workers; killed where the caller stops asking.
        retries: see `attend`.
    Yields:
        Each job with its results, when it is done.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[Done | BaseException] = queue.SimpleQueue()
    for job in sorted(jobs, key=lambda each: -len(each.cells)):
        waiting.put(job)
    ended = threading.Event()

    def work() -> None:
        seat = children.seat()
        while not ended.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                done.put((job, attend(job, seat.run, retries, ended.is_set)))
            except BaseException as error:
                done.put(error)
        seat.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(jobs)))]
    for thread in threads:
        thread.start()
    left = len(jobs)
    try:
        while left:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            left -= 1
            yield found
    finally:
        ended.set()
        if left:
            children.kill()
        for thread in threads:
            thread.join()
