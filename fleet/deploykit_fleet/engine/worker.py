"""The process that computes cells: `python -m deploykit_fleet.engine.worker`, told by one line of JSON.

It lives as long as whoever started it: when its standard input ends it kills its whole process group, with the
compilers and converters that it started, so that nothing outlives a release that was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import msgspec

from deploykit_fleet.engine.jobs import PROFILE, Job


def main() -> int:
    """Do one job; 0 where every cell has a result."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_die_with_the_other_end, daemon=True, name="deploykit-parent").start()
    os.chdir(job.folder)
    if job.kind == PROFILE:
        from deploykit_fleet.engine.profiling import run
    else:
        from deploykit_fleet.engine.exporting import run
    run(job)
    return 0


def _die_with_the_other_end() -> None:
    descriptor = sys.stdin.fileno()
    while os.read(descriptor, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
