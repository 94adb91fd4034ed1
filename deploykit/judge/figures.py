"""Figures as people read them, with their units. What is not known is a dash, never a zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.contract.achieved import Achieved
    from deploykit.judge.parity import Link
    from deploykit.judge.profiling import Percentiles

UNKNOWN = "-"
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_SQNR_CAP_DB = 200.0  # `deploykit.judge.parity.SQNR_CAP_DB`; not imported, because that loads NumPy


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return UNKNOWN
    for unit, name in _SIZES:
        if count >= 0.9995 * unit:  # what rounds to 1000 kB is 1 MB
            return f"{count / unit:.3g} {name}" if count < 1e3 * unit else f"{count / unit:.0f} {name}"
    return f"{count:.0f} B"


def decibel(value: float | None) -> str:
    """A ratio in dB; the cap that exact equality is reported as is said in words."""
    if value is None:
        return UNKNOWN
    if value >= _SQNR_CAP_DB:
        return "identical"
    return "not finite or no signal" if value <= -_SQNR_CAP_DB else f"{value:.1f} dB"


def milliseconds(value: float | None) -> str:
    """A latency with three significant digits."""
    return UNKNOWN if value is None else f"{significant(value)} ms"


def share(value: float | None) -> str:
    """0 to 1 as a percentage; never rounds to 100 or 0 what is not."""
    if value is None:
        return UNKNOWN
    percent = value * 100.0
    shown = f"{percent:.1f}"
    if (shown == "100.0" and value < 1.0) or (shown == "0.0" and value > 0.0):
        return f"{'>' if value > 0.5 else '<'} {99.9 if value > 0.5 else 0.1} %"
    return f"{percent:.0f} %" if shown.endswith(".0") else f"{shown} %"


def plain(value: float | None) -> str:
    """A figure without unit, such as a cosine."""
    return UNKNOWN if value is None else f"{value:.5g}"


def cosine(value: float | None) -> str:
    """Up to six decimals, cut and not rounded: 1 means that nothing differs."""
    if value is None or not abs(value) <= 1.0:  # no cosine, NaN included
        return UNKNOWN if value is None else str(value)
    return f"{math.trunc(value * 1e6) / 1e6:.6g}"


def rate(value: float | None) -> str:
    """Samples per second."""
    return UNKNOWN if value is None else f"{significant(value)} /s"


def times(value: float | None) -> str:
    """A speed-up."""
    return UNKNOWN if value is None else f"{value:.2f} x"


def significant(value: float) -> str:
    """Three significant digits without an exponent for what a profile can show."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def latencies(found: Percentiles | None) -> str:
    """p50 / p99."""
    if found is None:
        return UNKNOWN
    return f"{significant(found.p50)} / {significant(found.p99)} ms"


def achieved(found: Achieved) -> str:
    """Shares of multiply-accumulates by the precision they run in, largest first."""
    names = sorted((name for name, macs in found.macs.items() if macs), key=lambda name: -found.macs[name])
    return ", ".join(f"{share(found.macs_fraction(name))} {name}" for name in names) or UNKNOWN


def of_link(link: Link) -> tuple[str, ...]:
    """The evidence of a comparison, and its SQNR, cosine, largest difference and share of equal classes."""
    worst = link.worst
    shown = (decibel(worst.sqnr_db), cosine(worst.cosine), plain(worst.max_abs), share(worst.top1_agreement))
    return (str(link.evidence), *shown)
