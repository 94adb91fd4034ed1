"""Forks processes that export, write tables and profiles and build, and kills them at random moments.

python zygote.py SHARED: a line on standard input is a number, the seed of one kill; the answer says what was killed.
The work is deploykit's own; everything is imported before the first fork, so that a kill costs no start.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy_toolchain

import deploykit
from deploykit.plugin.artifact import load
from deploykit_calibration.statistics import TensorStatistics
from deploykit_calibration.table import CalibrationTable

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS = {"export": 1.5, "table": 0.1, "profile": 0.1, "build": 0.2}


def export(shared: Path, turn: int) -> None:
    torch.manual_seed(turn)
    model, example = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()), (torch.randn(1, 8),)
    deploykit.export(
        model, "x86-cpu", "int8", example_inputs=example, calibration="synthetic", output=shared / "model",
        profile=False, progress=False, strict=False,
    )  # fmt: skip


def table(shared: Path, turn: int) -> None:
    values = np.random.default_rng(turn).standard_normal(500).astype(np.float32)
    made = CalibrationTable("ab" * 32, samples=4, statistics={"x": TensorStatistics.of(values)})
    made.save(shared / "model.calibration")


def profile(shared: Path, turn: int) -> None:
    load(shared / "toy").save_profile(toy_toolchain.make_profile(runs=100 + turn))


def build(shared: Path, _: int) -> None:
    deploykit.build(shared / "pending", output=shared / "built", profile=False)


TASKS: dict[str, Callable[[Path, int], None]] = {"export": export, "table": table, "profile": profile, "build": build}


def work(task: str, shared: Path, rng: random.Random) -> None:
    """Until somebody ends it."""
    while True:
        TASKS[task](shared, rng.randrange(1000))


def killed(seed: int, shared: Path) -> dict[str, Any]:
    rng = random.Random(seed)
    task, number = rng.choice(sorted(TASKS)), rng.choice(SIGNALS)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child is at work
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            work(task, shared, rng)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            os._exit(1)  # it failed by itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    time.sleep(rng.uniform(0.0, SECONDS[task]))
    ended, times = 0, 0
    while not ended and times < 20:  # Python drops a Ctrl-C that comes in a destructor: who waits presses again
        os.kill(child, number)
        times += 1
        ended, status = _waited(child)
    return {"task": task, "signal": number.name, "code": os.waitstatus_to_exitcode(status) if ended else None}


def _waited(child: int) -> tuple[int, int]:
    deadline = time.monotonic() + 2.0
    while not (found := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def main() -> None:
    shared = Path(sys.argv[1])
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # runtimes talk
    for task in TASKS.values():
        task(shared, 0)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(killed(int(line), shared), file=answers, flush=True)


if __name__ == "__main__":
    main()
