from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from deploykit_targets.tvm.kernels.expressions import Affine, limits_of
from deploykit_targets.tvm.kernels.isa import Isa
from deploykit_targets.tvm.kernels.rows import layer_norm, softmax
from deploykit_targets.tvm.kernels.table import make_table, table

few = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
SIZES = {"rows": st.integers(1, 70), "columns": st.integers(1, 300)}


def softmax_reference(x: np.ndarray) -> np.ndarray:
    power = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


@few
@given(**SIZES)
def test_softmax(rows: int, columns: int, host_width: Isa, execute: Any, close: Any) -> None:
    x = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32) * 5
    result = execute(softmax(rows, columns), host_width, x, elements=x.size, dtype="float32")
    close(result, softmax_reference(x))


def test_softmax_of_masked_and_large_values(host_width: Isa, execute: Any, close: Any) -> None:
    x = np.array([[-np.inf, 0, 1], [1e30, -1e30, 1e30], [-3e38, -3e38, -3e38]], dtype=np.float32)
    result = execute(softmax(3, 3), host_width, x, elements=9, dtype="float32")
    close(result, softmax_reference(x))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantized_softmax(dtype: str, host_width: Isa, execute: Any, within_one: Any) -> None:
    x, to = np.random.default_rng(0).normal(size=(33, 50)).astype(np.float32) * 3, Affine(1 / 255, limits_of(dtype)[0])
    result = execute(softmax(33, 50, to=to, dtype=dtype), host_width, x, elements=x.size, dtype=dtype)
    within_one(result, np.clip(np.rint(softmax_reference(x) / to.scale) + to.zero_point, *limits_of(dtype)))


def norm_reference(x: np.ndarray, w: np.ndarray, b: np.ndarray, epsilon: float, centred: bool) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.mean(-1, keepdims=True) if centred else x
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * w + b


@few
@given(centred=st.booleans(), **SIZES)
def test_layer_norm(rows: int, columns: int, centred: bool, host_width: Isa, execute: Any, close: Any) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, columns)) * 2 + 1).astype(np.float32)
    w, b = (rng.normal(size=columns).astype(np.float32) for _ in range(2))
    kernel = layer_norm(rows, columns, 1e-5, centred=centred)
    result = execute(kernel, host_width, x, w, b, elements=x.size, dtype="float32")
    close(result, norm_reference(x, w, b, 1e-5, centred))


def test_quantized_layer_norm(host_width: Isa, execute: Any, within_one: Any) -> None:
    rng, to = np.random.default_rng(0), Affine(0.0317, 120)
    x = rng.normal(size=(65, 77)).astype(np.float32)
    w, b = (rng.normal(size=77).astype(np.float32) for _ in range(2))
    kernel = layer_norm(65, 77, 1e-5, to=to, dtype="uint8")
    result = execute(kernel, host_width, x, w, b, elements=x.size, dtype="uint8")
    expected = norm_reference(x, w, b, 1e-5, True) / to.scale
    within_one(result, np.clip(np.rint(expected + to.zero_point), 0, 255))


@few
@given(length=st.integers(1, 9000), source=st.sampled_from(["uint8", "int8"]), dtype=st.sampled_from(["uint8", "int8"]))
def test_table(length: int, source: str, dtype: str, host_width: Isa, execute: Any) -> None:
    of, to = Affine(0.05, 3), Affine(0.031, 20)
    low, high = limits_of(source)
    x = np.random.default_rng(0).integers(low, high + 1, length).astype(source)
    entries = make_table(lambda value: value / (1 + np.exp(-value)), source, dtype, of, to)
    result = execute(table(length, source, dtype), host_width, x, entries, elements=length, dtype=dtype)
    real = (x.astype(np.float64) - 3) * 0.05
    np.testing.assert_array_equal(
        result, np.clip(np.rint(real / (1 + np.exp(-real)) / 0.031) + 20, *limits_of(dtype)).astype(dtype)
    )
