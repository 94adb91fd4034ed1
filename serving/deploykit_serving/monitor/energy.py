"""Energy of an inference from counters or power sensors, with an interval; nothing where there is neither.

A watch is cut into windows. Each gives the energy of a sensor and a number of inferences; their spread gives a 95 %
interval (Student's t over the windows, a ratio estimate). That is the spread of the measurement: a sensor's own error,
which no file of the kernel tells, is not in it. What a sensor measures is all that hangs on it, other programs too, so
the idle power before the watch is told beside it, and the energy above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploykit_serving.monitor.reading import Reading, Snapshot

MIN_WINDOWS = 3
# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the normal distribution's is used.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_T_BEYOND = 1.96

Key = tuple[str, str]


@dataclass(frozen=True)
class Window:
    """A part of a watch.

    Attributes:
        snapshots: taken in it, the first at its begin and the last at its end.
        inferences: that ended in it.
    """

    snapshots: tuple[Snapshot, ...]
    inferences: int

    @property
    def seconds(self) -> float:
        """From the first to the last snapshot."""
        return self.snapshots[-1].at_s - self.snapshots[0].at_s


@dataclass(frozen=True)
class Energy:
    """Energy of one inference by one sensor.

    Attributes:
        of, source: the sensor and where it was read.
        joules: of an inference, all that the sensor measures.
        low_joules, high_joules: 95 % interval of `joules`.
        idle_watts: before the watch; None where that was not measured.
        above_idle_joules: of an inference, without the idle power; None likewise.
        above_idle_low_joules, above_idle_high_joules: 95 % interval; None likewise.
        windows, inferences: that it rests on.
    """

    of: str
    source: str
    joules: float
    low_joules: float
    high_joules: float
    windows: int
    inferences: int
    idle_watts: float | None = None
    above_idle_joules: float | None = None
    above_idle_low_joules: float | None = None
    above_idle_high_joules: float | None = None


def energies(windows: Sequence[Window], idle: Sequence[Window]) -> tuple[tuple[Energy, ...], tuple[str, ...]]:
    """Energy of an inference by every sensor that measured all windows.

    A sensor with a counter of energy is read by that; one with power alone is integrated between its samples.

    Returns:
        One entry for each sensor, and why there are none or fewer.
    """
    if len(windows) < MIN_WINDOWS or any(window.inferences < 1 for window in windows):
        return (), (f"energy needs {MIN_WINDOWS} windows with inferences in each: watch longer",)
    found, notes = [], []
    for key, source in _sensors(windows).items():
        joules = [_joules(window, key) for window in windows]
        if any(value is None for value in joules):
            notes.append(f"{key[1]} ({source}) did not answer all the time, and gives no energy")
            continue
        known = [value for value in joules if value is not None]
        if not any(known):
            notes.append(f"{key[1]} ({source}) did not move in {sum(w.seconds for w in windows):.1f} s")
            continue
        found.append(_energy(key, source, windows, known, _idle_watts(idle, key)))
    if not found and not notes:
        notes.append("no sensor of energy or power answers here: there is no energy of an inference")
    return tuple(found), tuple(notes)


def _sensors(windows: Sequence[Window]) -> dict[Key, str]:
    """Which sensors there are; power counts only where the same sensor has no counter of energy."""
    counters = _keys(windows, "energy_joules")
    powers = _keys(windows, "power_watts")
    return counters | {key: source for key, source in powers.items() if ("energy_joules", key[1]) not in counters}


def _keys(windows: Sequence[Window], metric: str) -> dict[Key, str]:
    return {
        (metric, reading.of): reading.source
        for window in windows
        for snapshot in window.snapshots
        for reading in snapshot.of(metric)
    }


def _joules(window: Window, key: Key) -> float | None:
    """Energy of a sensor in a window; None where it was silent at the begin, at the end, or in between."""
    metric, of = key
    values = [_value(snapshot.of(metric), of) for snapshot in window.snapshots]
    if metric == "energy_joules":
        first, last = values[0], values[-1]
        return None if first is None or last is None or last < first else last - first
    total = 0.0
    for before, after, earlier, later in zip(values, values[1:], window.snapshots, window.snapshots[1:], strict=False):
        if before is None or after is None:
            return None
        total += (before + after) / 2 * (later.at_s - earlier.at_s)
    return total


def _value(readings: Sequence[Reading], of: str) -> float | None:
    return next((reading.value for reading in readings if reading.of == of), None)


def _idle_watts(idle: Sequence[Window], key: Key) -> list[float] | None:
    found = [(_joules(window, key), window.seconds) for window in idle]
    watts = [joules / seconds for joules, seconds in found if joules is not None and seconds > 0]
    return watts if len(watts) == len(found) >= MIN_WINDOWS else None


def _energy(
    key: Key, source: str, windows: Sequence[Window], joules: Sequence[float], idle_watts: Sequence[float] | None
) -> Energy:
    counts = [window.inferences for window in windows]
    total, seconds = sum(counts), sum(window.seconds for window in windows)
    each, error = _ratio(joules, counts)
    half = _t(len(windows) - 1) * error
    plain = Energy(key[1], source, each, max(0.0, each - half), each + half, len(windows), total)
    if idle_watts is None:
        return plain
    idle = sum(idle_watts) / len(idle_watts)
    spread = sum((watts - idle) ** 2 for watts in idle_watts) / (len(idle_watts) - 1)
    idle_error = math.sqrt(spread / len(idle_watts)) * seconds / total
    above = each - idle * seconds / total
    half = _t(min(len(windows), len(idle_watts)) - 1) * math.hypot(error, idle_error)  # of the fewer: the wider one
    return Energy(
        plain.of, plain.source, plain.joules, plain.low_joules, plain.high_joules, plain.windows, plain.inferences,
        idle, above, above - half, above + half,
    )  # fmt: skip


def _ratio(values: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The ratio of the sums, and its standard error (Cochran, Sampling Techniques, ratio estimates)."""
    number, mean_count = len(values), sum(counts) / len(counts)
    ratio = sum(values) / sum(counts)
    residual = sum((value - ratio * count) ** 2 for value, count in zip(values, counts, strict=True)) / (number - 1)
    return ratio, math.sqrt(residual / number) / mean_count


def _t(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else _T_BEYOND
