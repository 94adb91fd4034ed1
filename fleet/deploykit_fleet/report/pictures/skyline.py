"""The layers of one artifact as a skyline: SQNR upwards, time downwards, in the order of execution.

A release has thousands of layers: bars are strokes in units of their own (a layer across, a decibel up, a hundredth of
the longest time down), so that one takes seven bytes; and the figures below it are JSON and a table at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit.judge import figures
from deploykit_fleet.report.layers import LayerRow
from deploykit_fleet.report.markup import LONGEST, Html, el, join, rows_block, sentence, short
from deploykit_fleet.report.pictures.axes import Scale, linear_ticks
from deploykit_fleet.report.pictures.colours import colour_of
from deploykit_fleet.report.pictures.frame import WIDTH, figure, label, legend_of, side_axis, svg

_LEFT, _RIGHT, _TOP, _MIDDLE, _DOWN = 30.0, WIDTH - 4.0, 22.0, 118.0, 44.0
_HIGHEST_DB, _STUB_DB = 100.0, 1.5  # what was not compared, or is all noise, is a stub
_WORST = 3


def skyline(name: str, rows: Sequence[LayerRow], gate_db: float | None) -> Html | None:
    """The picture; None where neither SQNR nor times are known.

    Args:
        name: of the figure.
        rows: in the order of execution.
        gate_db: of the whole model, drawn as a line; None for none.
    """
    heard = [row.sqnr_db for row in rows if row.sqnr_db is not None and row.sqnr_db < SQNR_CAP_DB]
    spent = max((row.microseconds or 0.0 for row in rows), default=0.0)
    if not heard and not spent:
        return None
    parts = _decibels(rows, heard, gate_db) if heard else []
    parts += _times(rows, spent) if spent else []
    height = _MIDDLE + (_DOWN + 18.0 if spent else 16.0)
    where = label((_LEFT + _RIGHT) / 2, height - 3, "layers in the order of execution →", kind="dim", anchor="middle")
    picture = svg(height, f"SQNR and time of {len(rows)} layers", *parts, where)
    said = " · ".join(filter(None, ("height: SQNR of the output" if heard else "", "below: time" if spent else "")))
    every = el("details", el("summary", f"All {len(rows)} layers"), _rows(name, rows))
    return figure(name, "Layers", said, picture, every, _legend(rows), _noisiest(rows))


def _decibels(rows: Sequence[LayerRow], heard: Sequence[float], gate_db: float | None) -> list[Html]:
    """Axis, bars by precision, and the gate."""
    top = max([*heard, gate_db or 0.0, 10.0])
    scale = Scale(0.0, min(_HIGHEST_DB, linear_ticks(0.0, top * 1.25, 4)[-1]), _MIDDLE, _TOP)
    heights: dict[str, dict[int, float]] = {}
    for index, row in enumerate(rows):
        shown = _STUB_DB if row.sqnr_db is None else min(max(row.sqnr_db, _STUB_DB), scale.high)
        heights.setdefault(colour_of(row.precision), {})[index] = shown
    by = (_TOP - _MIDDLE) / scale.high
    bars = [_strokes(found, len(rows), _MIDDLE, by, f"s {kind}") for kind, found in heights.items()]
    gate = [_gate(scale, gate_db)] if gate_db is not None else []
    return [side_axis(scale, _LEFT, _RIGHT), *bars, *gate, label(2, 10, "dB", kind="dim")]


def _times(rows: Sequence[LayerRow], most: float) -> list[Html]:
    depths = {index: 100.0 * row.microseconds / most for index, row in enumerate(rows) if row.microseconds}
    return [
        _strokes(depths, len(rows), _MIDDLE + 3.0, (_DOWN - 3.0) / 100.0, "s time"),
        label(_LEFT - 4, _MIDDLE + _DOWN, figures.significant(most), anchor="end"),
        label(_LEFT - 4, _MIDDLE + 14, "µs", kind="dim", anchor="end"),
    ]


def _strokes(lengths: Mapping[int, float], count: int, y: float, by: float, kind: str) -> Html:
    """Bars from a line: a layer across is one unit, `by` what a unit of length is drawn as."""
    across = (_RIGHT - _LEFT) / count
    path = "".join(f"M{index} 0V{max(1, round(length))}" for index, length in lengths.items())
    return el(
        "path", d=path, class_=kind, transform=f"translate({_LEFT + across / 2:.2f} {y:g})scale({across:.4g} {by:.4g})"
    )


def _gate(scale: Scale, gate_db: float) -> Html:
    y = scale.at(gate_db)
    line = el("path", d=f"M{_LEFT:g} {y:g}H{_RIGHT:g}", class_="gate")
    return join([line, label(_RIGHT, y - 3, f"gate of the model {gate_db:g} dB", kind="halo", anchor="end")])


def _noisiest(rows: Sequence[LayerRow]) -> Html | None:
    worst = sorted((row for row in rows if row.sqnr_db is not None), key=lambda row: row.sqnr_db or 0.0)[:_WORST]
    named = ", ".join(f"{short(row.name, 60)} {figures.decibel(row.sqnr_db)}" for row in worst)
    return el("p", f"Noisiest: {named}", class_="told") if named else None


def _legend(rows: Sequence[LayerRow]) -> Html | None:
    names: dict[str, list[str]] = {}
    for row in rows:
        known = names.setdefault(colour_of(row.precision), [])
        shown = short(row.precision or "not counted", 24)
        if shown not in known:
            known.append(shown)
    return legend_of((kind, ", ".join(known[:4])) for kind, known in names.items())


def _rows(name: str, rows: Sequence[LayerRow]) -> Html:
    """Name, kind, precision, dB and microseconds of each layer, and why it is not as asked: the place of its reason."""
    columns = ["layer", "operator", "precision", "SQNR", "µs", "because"]
    reasons = list(dict.fromkeys(sentence(row.reason) for row in rows if row.reason))
    shown = [
        [
            short(row.name, LONGEST),
            short(row.op, LONGEST),
            short(row.precision, LONGEST),
            None if row.sqnr_db is None else _plain(row.sqnr_db),
            None if row.microseconds is None else _plain(row.microseconds),
            *([reasons.index(sentence(row.reason))] if row.reason else []),
        ]
        for row in rows
    ]
    return rows_block(name, columns if reasons else columns[:-1], shown, {"because": reasons} if reasons else {})


def _plain(value: float) -> float:
    """One decimal, and none where it is 0."""
    return int(value) if value == int(value) else round(value, 1)
