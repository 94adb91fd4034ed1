"""Many threads on one session: what `TargetConformance` proves of a target, and `benchmarks/threads.py` at length."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploykit.contract.errors import DeploykitError
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds

Outputs = dict[str, np.ndarray]


@dataclass
class Hammered:
    """What came of it.

    Attributes:
        right: runs that gave exactly what one thread alone gets.
        wrong: runs that gave something else.
        refused: runs that were refused because the session was closed.
        raised: every other exception; also a refusal before `close` was called.
    """

    right: int = 0
    wrong: int = 0
    refused: int = 0
    raised: list[str] = field(default_factory=list)


def variants(feeds: Feeds, count: int) -> list[Outputs]:
    """Feeds that give different outputs: floats are scaled, all else is as given."""
    return [
        {
            name: (array * array.dtype.type(1 - index / (count + 1))).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in feeds.items()
        }
        for index in range(count)
    ]


def hammer(session: Session, feeds: Sequence[Feeds], *, runs: int, close_after: float | None = None) -> Hammered:
    """Run a session from one thread for each of `feeds`, all at once.

    Args:
        feeds: the feeds of each thread, with different outputs.
        runs: how often each thread runs.
        close_after: close the session when this many seconds have passed, beside the runs.
    Returns:
        Counts over all threads.
    """
    expected = [session.run(own) for own in feeds]
    found, guard = Hammered(), threading.Lock()
    begin, closing = threading.Barrier(len(feeds) + 1), threading.Event()

    def work(own: Feeds, wanted: Outputs) -> None:
        begin.wait()
        for _ in range(runs):
            before = closing.is_set()
            try:
                got = session.run(own)
            except Exception as error:
                refused = isinstance(error, DeploykitError) and "closed" in str(error) and closing.is_set()
                with guard:
                    found.refused += refused
                    if not refused:
                        found.raised.append(f"{'after' if before else 'before'} close: {type(error).__name__}: {error}")
                continue
            same = got.keys() == wanted.keys() and all(np.array_equal(got[name], wanted[name]) for name in wanted)
            with guard:
                found.right += same
                found.wrong += not same

    threads = [threading.Thread(target=work, args=pair) for pair in zip(feeds, expected, strict=True)]
    for thread in threads:
        thread.start()
    begin.wait()
    if close_after is not None:
        time.sleep(close_after)
        closing.set()
        session.close()
    for thread in threads:
        thread.join()
    return found


def random_moment(session: Session, feeds: Sequence[Feeds], *, runs: int, seed: int) -> float:
    """Some time in seconds within what `hammer` takes for `runs`, by a measurement of one run of each thread."""
    began = time.perf_counter()
    for own in feeds:
        session.run(own)
    return random.Random(seed).random() * (time.perf_counter() - began) * runs


def in_a_fork(work: Callable[[], bool], *, seconds: int) -> int:
    """Do `work` in a forked copy of this process.

    Returns:
        0 where it gave True, 1 where it gave False or raised, a negative signal where it hung or crashed.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
