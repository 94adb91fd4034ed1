"""Functions of vectors against float64, with the errors that their docstrings state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from deploykit_targets.tvm.kernels import vector_math
from deploykit_targets.tvm.kernels.mapped import Access, mapped

ERF = np.vectorize(math.erf)


def _computed(name: str, x: np.ndarray, host_width: Any, execute: Any) -> np.ndarray:
    function = getattr(vector_math, name)
    access = Access("float32", (1,))
    kernel = mapped((x.size,), [access], access, lambda v, lanes: function(v[0], lanes))
    found: np.ndarray = execute(kernel, host_width, x, elements=x.size, dtype="float32").astype(np.float64)
    return found


def test_exp(host_width: Any, execute: Any) -> None:
    x = np.linspace(-87, 88, 4001, dtype=np.float32)
    wanted = np.exp(x.astype(np.float64))
    assert np.max(np.abs(_computed("exp", x, host_width, execute) / wanted - 1)) < 3e-7


def test_exp_beyond_float32_stays_finite(host_width: Any, execute: Any) -> None:
    found = _computed("exp", np.array([-1e30, -200, 0, 200, 1e30] * 4, np.float32), host_width, execute)
    assert np.isfinite(found).all() and found.min() < 1e-37 and found.max() > 1e38


@pytest.mark.parametrize(
    ("name", "reference", "limit"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 2e-7),
        ("tanh", np.tanh, 3e-7),
        ("erf", ERF, 5e-7),
    ],
)
def test_bounded_functions(name: str, reference: Any, limit: float, host_width: Any, execute: Any) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-6, -1e-6]]).astype(np.float32)
    assert np.max(np.abs(_computed(name, x, host_width, execute) - reference(x.astype(np.float64)))) < limit
