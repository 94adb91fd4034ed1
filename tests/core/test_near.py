"""What is offered for names that are not there."""

import pytest

from deploykit.contract.near import near, question

WORDS = {"rpi": ("raspberry-pi-5", "raspberry-pi-4")}
NAMES = ("x86-cpu", "raspberry-pi-5", "raspberry-pi-4", "jetson-orin")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("X86_CPU", ["x86-cpu"]),
        ("rpi", ["raspberry-pi-5", "raspberry-pi-4"]),
        ("jetson", ["jetson-orin"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_nearest_first(typed, meant):
    assert near(typed, NAMES, WORDS) == meant


def test_a_word_for_what_is_not_registered_is_not_offered():
    assert near("rpi", ("x86-cpu",), WORDS) == []


def test_questions():
    assert question(["a", "b"], "else") == "did you mean a, b?" and question([], "else") == "else"
