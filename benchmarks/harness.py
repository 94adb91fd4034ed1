"""What every benchmark shares: interleaved timing, a table for people, JSON for programs, the machine's features."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")

if os.environ.get("MASK_PATCHED"):  # deploykit asks the CPU by code of its own, which `cpuid_patch.py` does not find
    from deploykit.contract import cpuid

    cpuid._CPUID = {name: code.replace("0fa2", "cd81") for name, code in cpuid._CPUID.items()}


SETTLING_SECONDS = 0.06


def interleaved_ms(
    functions: Mapping[str, Callable[[], Any]],
    turns: int,
    *,
    runs: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call the functions in turns; milliseconds of every counted call by name. What disturbs one disturbs all alike.

    `clock` gives seconds: `time.thread_time` for what runs on one thread is steadier on a busy machine.

    A runtime's idle threads spin for a while after a call, on the cores that the next function needs: the calls of
    the first `SETTLING_SECONDS` of a turn (two at least) do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            began, settling = time.perf_counter(), 0
            while settling < 2 or time.perf_counter() - began < SETTLING_SECONDS:
                function()
                settling += 1
            for _ in range(runs):
                start = clock()
                function()
                times[name].append((clock() - start) * 1e3)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and minimum in milliseconds. Ratios are taken between minima: the least disturbed call of each."""
    return {"median_ms": round(statistics.median(times), 3), "min_ms": round(min(times), 3)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence peers: their prints, warnings and log lines are not results."""
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="deploykit-benchmark-") as folder:
        yield Path(folder)


def report(name: str, rows: Sequence[Mapping[str, Any]], *, notes: Sequence[str] = ()) -> None:
    """Print `rows` as a table and write them to `results/<name>.json` with the machine and the versions."""
    from rich.console import Console
    from rich.table import Table

    from deploykit.contract.cpuid import emulator
    from deploykit.contract.host import this_host

    if emulator():
        notes = (*notes, f"emulated by {emulator()} on another kind of CPU: results are its own, times mean nothing")
    table = Table(title=name)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)
    print(f"- kind of CPU: {this_host().kind} ({this_host()})")
    for note in notes:
        print(f"- {note}")
    record(name, rows, notes=notes)


def record(name: str, rows: Sequence[Mapping[str, Any]], *, notes: Sequence[str] = ()) -> None:
    """Write `rows` to `results/<name>.json` with the machine and the versions: also those of a run that goes on."""
    from deploykit.contract.host import this_host

    RESULTS.mkdir(exist_ok=True)
    found = {"benchmark": name, "machine": asdict(this_host()), "versions": _versions(), "rows": rows, "notes": notes}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
    return {name: metadata.version(name) for name in names if _installed(name)}


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def threads() -> int:
    """Threads that every runtime and PyTorch get: the cores of this process, at most 2."""
    import torch

    count = min(2, len(os.sched_getaffinity(0)))
    torch.set_num_threads(count)
    return count
