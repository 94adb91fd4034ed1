"""What `deploykit profile --watch` shows of an artifact that was run for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.cli.tables import grid, pairs
from deploykit.judge import figures

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit_serving.monitor.energy import Energy
    from deploykit_serving.monitor.watch import Figure, Watched


def watch_page(found: Watched) -> list[RenderableType]:
    """A watch for people: latency at its begin and end, energy, sensors, and what is not here."""
    rows = [
        ("runs", f"{found.runs} in {found.seconds:.1f} s"),
        ("latency, first fifth", figures.latencies(found.first_ms)),
        ("latency, last fifth", figures.latencies(found.last_ms)),
        *((f"energy, {one.of}", _energy(one)) for one in found.energy),
        *(("note", note) for note in found.notes),
    ]
    page: list[RenderableType] = [pairs("Watch", rows)]
    if found.figures:
        heads = ["figure", "of", "least", "mean", "most", "grew by", "source"]
        page.append(grid("Sensors", heads, [_figure(one) for one in found.figures], right=heads[2:6]))
    if found.absent:
        page.append(pairs("Absent", [(one.source, one.reason) for one in found.absent]))
    return page


def _figure(one: Figure) -> list[str]:
    values = [figures.UNKNOWN if v is None else f"{v:.4g}" for v in (one.least, one.mean, one.most, one.grew)]
    return [one.metric, one.of, *values, one.source]


def _energy(one: Energy) -> str:
    text = f"{_joules(one.joules)} an inference ({_joules(one.low_joules)} to {_joules(one.high_joules)})"
    if one.above_idle_joules is None or one.above_idle_low_joules is None or one.above_idle_high_joules is None:
        return text
    bounds = f"{_joules(one.above_idle_low_joules)} to {_joules(one.above_idle_high_joules)}"
    return f"{text}; {_joules(one.above_idle_joules)} above idle ({bounds})"


def _joules(value: float) -> str:
    return f"{value:.3g} J" if abs(value) >= 1 else f"{value * 1e3:.3g} mJ"
