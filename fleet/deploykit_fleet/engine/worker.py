"""The process that computes cells: `python -m deploykit_fleet.engine.worker FD`, told by a line of JSON for each job.

It is told on its standard input, which it takes for itself: the user's code finds an empty one. It says on FD when a
job is done. It lives as long as whoever started it: when its input ends without a word it kills its whole process
group, with the compilers and converters that it started, so that nothing outlives a release that was killed.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
from pathlib import Path

import msgspec

from deploykit_fleet.engine.child import DONE, END, LOG
from deploykit_fleet.engine.jobs import PROFILE, Job

_CHUNK = 1 << 16


def main() -> int:
    """Do jobs until there are no more."""
    done, orders = int(sys.argv[1]), _taken()
    os.set_inheritable(done, False)
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, told), daemon=True, name="deploykit-parent").start()
    while (line := told.get()) != END:
        _do(msgspec.json.decode(line, type=Job))
        gc.collect()  # a captured model has circles in it
        os.write(done, DONE)
    return 0


def _do(job: Job) -> None:
    """One job, with what it says in its own log."""
    with open(Path(job.work) / LOG, "ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.chdir(job.folder)
    if job.kind == PROFILE:
        from deploykit_fleet.engine.profiling import run
    else:
        from deploykit_fleet.engine.exporting import run
    run(job)
    sys.stdout.flush()


def _taken() -> int:
    """Standard input as a descriptor of our own; nothing that asks a question or is started here reads what is ours."""
    own, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return own


def _listen(orders: int, told: queue.SimpleQueue[bytes]) -> None:
    """Without a buffer of Python's, whose lock would abort this process where the user's code ends it."""
    begun = b""
    while data := os.read(orders, _CHUNK):
        *lines, begun = (begun + data).split(b"\n")
        for line in lines:
            told.put(line + b"\n")
            if line + b"\n" == END:
                return
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
