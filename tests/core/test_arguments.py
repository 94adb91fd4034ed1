"""Numbers and lists of names as users give them: plain values, or a refusal that names the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.contract.arguments import names, number, path
from deploykit.contract.errors import UsageError
from deploykit.judge.parity import Tolerance


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.float64(3), np.int64(3)])
def test_every_kind_of_number_is_a_plain_float(value: Any) -> None:
    assert type(number("n", value, "hint")) is float and number("n", value, "hint") == 3.0
    assert type(Tolerance(min_sqnr_db=value).min_sqnr_db) is float
    assert number("n", None, "hint") is None


@pytest.mark.parametrize("value", [True, np.True_, "3", float("nan"), float("inf"), 10**400, [3], 3j])
def test_what_is_no_finite_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(UsageError, match="budget is ") as caught:
        number("budget", value, "pass seconds")
    assert caught.value.hint == "pass seconds" and len(str(caught.value)) < 200
    with pytest.raises(UsageError, match="min_cosine is "):
        Tolerance(min_cosine=value)


def test_a_number_that_python_does_not_write_is_refused_too() -> None:
    with pytest.raises(UsageError, match="budget is a number of type int"):
        number("budget", 10**5000, "pass seconds")


def test_bounds_belong_to_what_is_allowed() -> None:
    assert number("n", 0, "h", least=0.0, most=1.0) == 0.0 and number("n", 1, "h", least=0.0, most=1.0) == 1.0
    for value in (-0.01, 1.01):
        with pytest.raises(UsageError, match="n is "):
            number("n", value, "h", least=0.0, most=1.0)


def test_a_list_of_names_is_a_tuple_and_an_iterator_is_read_once() -> None:
    assert names("allow", (each for each in ("a", "b")), "ptq") == ("a", "b") == names("allow", ["a", "b"], "ptq")
    assert names("allow", (), "ptq") == ()


@pytest.mark.parametrize("value", ["ptq", None, 5, ["ptq", 3], {"ptq": 1}, b"ptq"])
def test_what_is_no_list_of_names_is_refused_with_what_would_be(value: Any) -> None:
    with pytest.raises(UsageError, match="allow ") as caught:
        names("allow", value, "ptq")
    assert caught.value.hint == "allow=['ptq']"


def test_a_path_is_a_string_or_says_its_own() -> None:
    assert path("output", "a/b") == Path("a/b") == path("output", Path("a/b"))
    for value in (3, None, b"a", ["a"], True):
        with pytest.raises(UsageError, match="output is ") as caught:
            path("output", value)
        assert caught.value.hint == 'pass a path, such as output="out/model"'


def test_what_reads_or_writes_a_path_refuses_what_is_none() -> None:
    pytest.importorskip("torch", reason="a table is of a PyTorch model")
    table = deploykit.CalibrationTable("0" * 64)
    for call in (deploykit.load, deploykit.CalibrationTable.load, table.save, deploykit.Recipe.read):
        for value in (3, None):
            with pytest.raises(UsageError, match="path is "):
                call(value)  # type: ignore[arg-type]
