from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import UsageError

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from deploykit_targets.tvm.kernels.concat import concat
from deploykit_targets.tvm.kernels.elementwise import add, add_quantized, dequantize, quantize, requantize
from deploykit_targets.tvm.kernels.expressions import Affine, limits_of
from deploykit_targets.tvm.kernels.isa import Isa
from deploykit_targets.tvm.kernels.pad import pad

LENGTHS = [1, 7, 16, 100, 5000]  # below, at and above a vector, and more than one task
DTYPES = ["uint8", "int8"]


def data(length: int, dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.normal(size=length).astype(np.float32)
    low, high = limits_of(dtype)
    return rng.integers(low, high + 1, length).astype(dtype)


def real(x: np.ndarray, of: Affine) -> np.ndarray:
    return (x.astype(np.float64) - of.zero_point) * of.scale


def stored(x: np.ndarray, to: Affine, dtype: str) -> np.ndarray:
    return np.clip(np.rint(x / to.scale) + to.zero_point, *limits_of(dtype))


@pytest.mark.parametrize("length", LENGTHS)
def test_quantize_and_back(length: int, host_width: Isa, execute: Any, close: Any, within_one: Any) -> None:
    to = Affine(0.021, 3)
    x = data(length, "float32") * 2
    q = execute(quantize(length, "int8", to), host_width, x, elements=length, dtype="int8")
    within_one(q, stored(x.astype(np.float64), to, "int8"))
    close(execute(dequantize(length, "int8", to), host_width, q, elements=length, dtype="float32"), real(q, to) + 1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_clips_what_does_not_fit(dtype: str, host_width: Isa, execute: Any) -> None:
    x = np.array([-1e30, 1e30, -np.inf, np.inf, 0.0], dtype=np.float32)
    result = execute(quantize(5, dtype, Affine(0.1, 10)), host_width, x, elements=5, dtype=dtype)
    low, high = limits_of(dtype)
    np.testing.assert_array_equal(result, [low, high, low, high, 10])


def test_quantize_rounds_half_to_even(host_width: Isa, execute: Any) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5], dtype=np.float32)
    result = execute(quantize(5, "uint8", Affine(1.0, 11)), host_width, x, elements=5, dtype="uint8")
    np.testing.assert_array_equal(result, [11, 13, 13, 11, 9])


@pytest.mark.parametrize(("source", "dtype"), [("uint8", "uint8"), ("int8", "uint8"), ("uint8", "int8")])
def test_requantize(source: str, dtype: str, host_width: Isa, execute: Any, within_one: Any) -> None:
    of, to, x = Affine(0.03, 7), Affine(0.05, 20), data(1000, source)
    result = execute(requantize(1000, source, dtype, of, to), host_width, x, elements=1000, dtype=dtype)
    within_one(result, stored(real(x, of), to, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [3, 5000])
def test_add_quantized(length: int, dtype: str, host_width: Isa, execute: Any, within_one: Any) -> None:
    of, to = (Affine(0.03, 7), Affine(0.011, 100)), Affine(0.04, 30)
    a, b = data(length, dtype), data(length, dtype, seed=1)
    limits = (30, limits_of(dtype)[1])  # a fused ReLU
    result = execute(
        add_quantized(length, dtype, of, to, limits=limits), host_width, a, b, elements=length, dtype=dtype
    )
    within_one(result, np.clip(stored(real(a, of[0]) + real(b, of[1]), to, dtype), *limits))


@pytest.mark.parametrize("length", LENGTHS)
def test_add(length: int, host_width: Isa, execute: Any) -> None:
    a, b = data(length, "float32"), data(length, "float32", seed=1)
    result = execute(add(length, limits=(0, 6)), host_width, a, b, elements=length, dtype="float32")
    np.testing.assert_array_equal(result, np.clip(a + b, 0, 6))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("widths", [[1], [3, 70], [64, 5, 16, 33]])
def test_concat_copies(widths: list[int], dtype: str, host_width: Isa, execute: Any) -> None:
    parts = [data(6 * width, dtype, seed).reshape(6, width) for seed, width in enumerate(widths)]
    result = execute(concat(6, widths, dtype), host_width, *parts, elements=6 * sum(widths), dtype=dtype)
    np.testing.assert_array_equal(result, np.concatenate(parts, axis=1).ravel())


def test_concat_changes_scales(host_width: Isa, execute: Any, within_one: Any) -> None:
    widths, of, to = [30, 17], [Affine(0.03, 7), Affine(0.02, 0)], Affine(0.03, 7)
    parts = [data(50 * width, "uint8", seed).reshape(50, width) for seed, width in enumerate(widths)]
    result = execute(
        concat(50, widths, "uint8", of=of, to=to), host_width, *parts, elements=50 * sum(widths), dtype="uint8"
    )
    expected = [stored(real(part, a), to, "uint8") for part, a in zip(parts, of, strict=True)]
    within_one(result, np.concatenate(expected, axis=1))


def test_concat_refuses_half_a_quantization() -> None:
    with pytest.raises(UsageError, match="concat: 2 inputs"):
        concat(1, [2, 2], "uint8", of=[Affine(1.0, 0)])


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 128), ("int8", -3), ("float32", 0.0)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 2, 3)])
def test_pad(padding: tuple[int, int, int, int], dtype: str, value: float, host_width: Isa, execute: Any) -> None:
    x = data(2 * 4 * 5 * 3, dtype).reshape(2, 4, 5, 3)
    top, bottom, left, right = padding
    expected = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value).ravel()
    kernel = pad(x.shape, padding, dtype, value=value, slack=3)
    result = execute(kernel, host_width, x, elements=expected.size + 3, dtype=dtype)
    np.testing.assert_array_equal(result, np.append(expected, np.full(3, value, dtype)))


def test_negative_padding_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot pad"):
        pad((1, 4, 4, 1), (-1, 0, 0, 0), "uint8")
