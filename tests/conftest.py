"""One core per test process: runtimes and PyTorch otherwise start as many spinning threads as there are cores.

With pytest-xdist (`-n 2`) each worker gets a core of its own. Set before PyTorch is imported anywhere. Properties are
tested on a busy machine, too: how long drawing an example takes is no finding. A run in a shell's background ignores
Ctrl-C, and what tests start would inherit that. Under QEMU's user-mode emulation PyTorch's oneDNN is left out: its LSTM
is wrong there, and right on the CPUs that are emulated. tox tells its programs the width of the terminal it was
started in, and terminals ask for colours: what is printed is tested as in a file, unless a test says otherwise.
Python looks for circles among all objects each time some hundred were made; beside PyTorch that was an eighth of the
time that tests took. Here it looks more rarely.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal

from hypothesis import HealthCheck, settings

from deploykit.contract.cpuid import emulator

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{os.getpid()}").removeprefix("gw"))
if hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[_worker % len(_cores)]})
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _told in (
    *("COLUMNS", "LINES", "TERMINAL_WIDTH", "JUPYTER_COLUMNS", "JUPYTER_LINES"),  # rich and Typer read these
    *("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "PYTHON_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
):
    os.environ.pop(_told, None)
if emulator():
    with contextlib.suppress(ImportError):
        import torch

        torch.backends.mkldnn.enabled = False
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
gc.set_threshold(50_000, 20, 100)
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")
