"""The first minute against the last of a longer run: a board that is hot is slower than a profile of seconds says."""

from __future__ import annotations

import time

import numpy as np

from deploykit.contract.errors import UsageError
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds
from deploykit.judge.profiling import WARM_UP_RUNS, Percentiles, Sustained

MINUTES_10_S = 600.0
_WINDOW_S = 60.0
_TURN_S = 0.5
_LEAST_RUNS = 3


def sustain(session: Session, feeds: Feeds, seconds: float = MINUTES_10_S) -> Sustained:
    """Run back to back for a while, and compare the end with the beginning.

    Args:
        session: open; not under emulation, whose times mean nothing.
        feeds: the feeds of every run.
        seconds: how long; from ten minutes on the windows are a minute each, else a tenth of it.
    Raises:
        UsageError: `seconds` is not above 0.
    """
    if not seconds > 0:
        raise UsageError(f"a sustained run takes a number of seconds above 0, not {seconds!r}")
    window = _WINDOW_S if seconds >= MINUTES_10_S else seconds / 10
    warm = session.times_ms(feeds, runs=WARM_UP_RUNS)
    turn = max(1, int(min(_TURN_S, window / 4) * 1e3 / max(float(np.median(warm)), 1e-3)))
    began, ends, times = time.perf_counter(), list[float](), list[np.ndarray]()
    while not ends or ends[-1] < seconds or len(ends) < _LEAST_RUNS:
        times.append(np.asarray(session.times_ms(feeds, runs=turn)))
        ends.append(time.perf_counter() - began)
    first = [each for each, end in zip(times, ends, strict=True) if end <= window] or times[:1]
    last = [each for each, end in zip(times, ends, strict=True) if end > ends[-1] - window] or times[-1:]
    whole = sum(map(len, times))
    return Sustained(
        ends[-1], window, whole, *(Percentiles.of(np.concatenate(part).tolist()) for part in (first, last))
    )
