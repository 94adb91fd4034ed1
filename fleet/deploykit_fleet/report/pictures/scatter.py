"""Latency, accuracy and size of entries whose figures compare: place is the first two, area the third."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from deploykit_fleet.report.fronts import Front, Point
from deploykit_fleet.report.markup import Html, el, short
from deploykit_fleet.report.pictures.axes import Scale, spanning
from deploykit_fleet.report.pictures.colours import colour_of
from deploykit_fleet.report.pictures.frame import (
    WIDTH,
    bottom_axis,
    figure,
    label,
    legend_of,
    side_axis,
    svg,
    width_of,
)
from deploykit_fleet.report.times import unit_of

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, WIDTH - 14.0, 22.0, 186.0
_LARGEST, _SMALLEST = 13.0, 4.0  # radius
_CHARACTERS = 26
Box = tuple[float, float, float, float]


def scatter(name: str, front: Front) -> Html:
    """The picture of one front."""
    unit, by = unit_of(point.latency_ms for point in front.points)
    points = [replace(point, latency_ms=by * point.latency_ms) for point in front.points]
    across = spanning([point.latency_ms for point in points], _LEFT, _RIGHT, positive=True)
    up = spanning([point.accuracy for point in front.points], _BOTTOM, _TOP)
    marks = _marks(points, across, up)
    picture = svg(
        _BOTTOM + 32.0,
        _described(front),
        label(2, 10, front.unit, kind="dim"),
        side_axis(up, _LEFT, _RIGHT),
        bottom_axis(across, _BOTTOM, _TOP, f"median latency in {unit}" + (" (log)" if across.logarithmic else "")),
        _line(points, across, up),
        *marks,
    )
    said = f"latency: {front.speed}, {front.where} · accuracy: {front.quality} · area: size"
    legend = legend_of([("front", "on the front"), ("beaten", "beaten in all three")])
    return figure(name, short(front.model, 60), said, picture, _data(front), legend)


def _described(front: Front) -> str:
    best = ", ".join(short(point.label, 40) for point in front.points if point.best)
    return f"{len(front.points)} builds of {short(front.model)}; nothing beats {best}"


def _line(points: Sequence[Point], across: Scale, up: Scale) -> Html | None:
    """The step line of latency and accuracy: no build lies above and left of it."""
    steps, most = "", -math.inf
    for point in points:
        if point.accuracy > most:
            x, y = across.at(point.latency_ms), up.at(point.accuracy)
            steps += f"M{x:g} {y:g}" if not steps else f"H{x:g}V{y:g}"
            most = point.accuracy
    return el("path", d=f"{steps}H{_RIGHT:g}", class_="frontline") if steps else None


def _marks(points: Sequence[Point], across: Scale, up: Scale) -> list[Html]:
    """Circles, then the names that fit beside them without covering another."""
    largest = max(point.size_bytes for point in points) or 1
    circles, taken = [], []
    places = []
    for point in sorted(points, key=lambda point: -point.size_bytes):
        x, y = across.at(point.latency_ms), up.at(point.accuracy)
        radius = round(max(_SMALLEST, _LARGEST * math.sqrt(point.size_bytes / largest)), 1)
        kind = f"{colour_of(point.label.rpartition(' ')[2])} {'front' if point.best else 'beaten'}"
        circles.append(el("circle", cx=x, cy=y, r=radius, class_=kind))
        taken.append((x - radius, y - radius, x + radius, y + radius))
        places.append((point, x, y, radius))
    return [*circles, *_names(places, taken)]


def _names(places: Sequence[tuple[Point, float, float, float]], taken: list[Box]) -> list[Html]:
    found = []
    for point, x, y, radius in sorted(places, key=lambda place: not place[0].best):
        words = short(point.label, _CHARACTERS)
        for left, base in _beside(x, y, radius, width_of(words)):
            box = (left, base - 10.0, left + width_of(words), base + 2.0)
            inside = box[0] >= 2.0 and box[2] <= WIDTH - 2.0 and box[1] >= _TOP - 8.0 and box[3] <= _BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(label(round(left, 1), round(base, 1), words, kind="halo"))
                break
    return found


def _beside(x: float, y: float, radius: float, width: float) -> tuple[tuple[float, float], ...]:
    gap = radius + 4.0
    return (
        (x + gap, y + 4.0),
        (x - gap - width, y + 4.0),
        (x - width / 2, y - gap),
        (x - width / 2, y + gap + 9.0),
        (x + gap, y - gap),
        (x + gap, y + gap + 9.0),
        (x - gap - width, y - gap),
        (x - gap - width, y + gap + 9.0),
    )


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _data(front: Front) -> dict[str, object]:
    return {
        "model": short(front.model),
        "latency_evidence": front.speed,
        "accuracy_evidence": front.quality,
        "where": front.where,
        "accuracy": front.unit,
        "points": [
            {**asdict(point), "entry": short(point.entry), "label": short(point.label)} for point in front.points
        ],
    }
