"""Figures as people read them."""

import pytest

from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit.judge import figures


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (3_900_000, "3.9 MB"),
        (999_900, "1 MB"),
        (102_400_000, "102 MB"),
        (2.5e9, "2.5 GB"),
        (1.25e12, "1250 GB"),
    ],
)
def test_size(value, shown):
    assert figures.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (34.56, "34.6 dB"), (-3.0, "-3.0 dB"), (200.0, "identical"), (-200.0, "not finite or no signal")],
)
def test_decibel(value, shown):
    assert figures.decibel(value) == shown


def test_the_cap_is_that_of_parity():
    assert figures._SQNR_CAP_DB == SQNR_CAP_DB


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.5, "50 %"),
        (0.975, "97.5 %"),
        (0.99999, "> 99.9 %"),
        (0.00001, "< 0.1 %"),
    ],
)
def test_a_share_never_rounds_to_all_or_nothing(value, shown):
    assert figures.share(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (1.0, "1"), (0.9999996, "0.999999"), (0.9991, "0.9991"), (-0.25, "-0.25"), (0.0, "0")],
)
def test_a_cosine_never_rounds_to_one(value, shown):
    assert figures.cosine(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0123, "0.0123 ms"), (14.25, "14.2 ms"), (99.96, "100 ms"), (1234.5, "1,234 ms")],
)
def test_milliseconds(value, shown):
    assert figures.milliseconds(value) == shown


def test_rates_and_ratios():
    assert figures.rate(12345.6) == "12,346 /s" and figures.rate(None) == "-"
    assert figures.times(3.2857) == "3.29 x" and figures.times(None) == "-"
    assert figures.latencies(None) == "-" and figures.plain(None) == "-"


def test_achieved_largest_first():
    layers = [LayerAchieved(n, n, "op", n, macs) for n, macs in (("float32", 5), ("int8", 95), ("none", 0))]
    assert figures.achieved(Achieved.count("int8", layers, source="x")) == "95 % int8, 5 % float32"
    assert figures.achieved(Achieved.count("int8", [], source="x")) == "-"
