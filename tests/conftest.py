"""One core per test process: runtimes and PyTorch otherwise start as many spinning threads as there are cores.

With pytest-xdist (`-n 2`) each worker gets a core of its own. Set before PyTorch is imported anywhere.
"""

from __future__ import annotations

import os

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{os.getpid()}").removeprefix("gw"))
if hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[_worker % len(_cores)]})
os.environ.setdefault("OMP_NUM_THREADS", "1")
