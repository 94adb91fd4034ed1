"""What deploykit itself costs: its import, the list of targets, and a session's call on top of the runtime's own.

python benchmarks/overhead.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import peers
from harness import report, scratch

import deploykit
from deploykit.testing import models

_RUNS = 5
_CALLS = 20_000


def seconds(*command: str) -> float:
    """Median wall time of a fresh process, the interpreter's own start included."""
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def microseconds(call: Any) -> float:
    """Least mean of five turns of many calls."""
    turns = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(_CALLS // 5):
            call()
        turns.append((time.perf_counter() - start) / (_CALLS // 5) * 1e6)
    return min(turns)


def session_overhead() -> float:
    """Microseconds that `session.run` adds to ONNX Runtime's own call, on the smallest model there is."""
    model, example = models.mlp()
    with scratch() as folder:
        artifact = deploykit.export(
            model, "x86-cpu", "fp32", example_inputs=example, profile=False, progress=False, output=folder / "a"
        )
        (spec,) = artifact.inputs
        feeds = {spec.name: np.ascontiguousarray(example[0].numpy())}
        runner = peers.ort_runner(artifact.entry, 1)
        with artifact.open(threads=1) as session:
            return microseconds(lambda: session.run(feeds)) - microseconds(lambda: runner(feeds))


def main() -> None:
    """Measure, print, and write results/overhead.json."""
    python = sys.executable
    bare = seconds(python, "-c", "pass")
    rows = [
        {"what": "import deploykit, ms", "measured": round((seconds(python, "-c", "import deploykit") - bare) * 1e3, 1),
         "goal": 100},
        {"what": "deploykit targets, s", "measured": round(seconds(python, "-m", "deploykit", "targets"), 3),
         "goal": 0.5},
        {"what": "session.run over ONNX Runtime's own call, us", "measured": round(session_overhead(), 2), "goal": 20},
    ]  # fmt: skip
    report("overhead", rows, notes=["import: a bare interpreter's start subtracted; targets: the whole process"])


if __name__ == "__main__":
    main()
