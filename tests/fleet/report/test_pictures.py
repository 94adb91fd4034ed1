"""Scales, ticks and fronts, against what is counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit_fleet.report.fronts import _beats
from deploykit_fleet.report.markup import Html, data_block, el, short, text
from deploykit_fleet.report.pictures.axes import Scale, linear_ticks, spanning, tick_label
from deploykit_fleet.report.times import latency

SENSIBLE = st.floats(1e-6, 1e6)


@given(st.lists(SENSIBLE, min_size=1, max_size=8), st.booleans())
def test_every_figure_lies_on_its_scale_in_order(values, positive) -> None:
    scale = spanning(values, 10.0, 350.0, positive=positive)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places) and all(10.0 <= place <= 350.0 for place in places)
    ticks = scale.ticks()
    assert len(ticks) <= 12 and ticks == sorted(ticks)
    assert all(scale.low * 0.999999 <= tick <= scale.high * 1.000001 for tick in ticks)


def test_ticks_are_round() -> None:
    assert linear_ticks(0.0, 60.0, 4) == [0, 20, 40, 60]
    assert linear_ticks(0.0, 1.0, 4) == [0, 0.25, 0.5, 0.75, 1.0]
    assert Scale(0.02, 3.0, 0, 1, logarithmic=True).ticks(5) == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    assert [tick_label(each) for each in (0.25, 20.0, 12500.0)] == ["0.25", "20", "12,500"]


def test_what_beats_what() -> None:
    assert _beats((1.0, 2.0, 3.0), (1.0, 2.0, 4.0)) and not _beats((1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
    assert not _beats((1.0, 2.0, 3.0), (0.5, 9.0, 9.0))


def test_times_have_units() -> None:
    assert [latency(each) for each in (0.0299, 0.099, 0.1, 12.345, 1234.0)] == [
        "29.9 µs",
        "99 µs",
        "0.1 ms",
        "12.3 ms",
        "1,234 ms",
    ]


def test_only_markup_is_markup() -> None:
    assert el("p", "<b>", el("b", "x"), title='"<>') == '<p title="&quot;&lt;&gt;">&lt;b&gt;<b>x</b>'
    assert text("\u202ex") == "\\u202ex" and isinstance(text(""), Html)
    assert el("path", d="M0 0", class_="a") == '<path d="M0 0" class=a />'
    assert "</script" not in data_block("x", ["</script>"])[:-9]


@pytest.mark.parametrize("length", [1, 119, 120, 121, 10_000])
def test_names_are_cut_in_the_middle(length) -> None:
    name = "b" + "x" * (length - 2) + "e" * (length > 1)
    shown = short(name)
    assert len(shown) <= 120 and shown[0] == name[0] and shown[-1] == name[-1]
