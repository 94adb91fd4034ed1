"""Times as people read them on a page: microseconds below a tenth of a millisecond."""

from __future__ import annotations

from collections.abc import Iterable

from deploykit.judge import figures
from deploykit.judge.profiling import Percentiles

_MICROSECONDS_BELOW_MS = 0.1


def latency(milliseconds: float) -> str:
    """One time with its unit, in three significant digits."""
    unit, factor = unit_of([milliseconds])
    return f"{figures.significant(factor * milliseconds)} {unit}"


def latencies(found: Percentiles) -> str:
    """Median and 99th percentile, in one unit."""
    unit, factor = unit_of([found.p50])
    return f"{figures.significant(factor * found.p50)} / {figures.significant(factor * found.p99)} {unit}"


def unit_of(milliseconds: Iterable[float]) -> tuple[str, float]:
    """The unit in which times are shown together, and what milliseconds are multiplied by for it."""
    small = 0.0 < max(milliseconds, default=0.0) < _MICROSECONDS_BELOW_MS
    return ("µs", 1e3) if small else ("ms", 1.0)
