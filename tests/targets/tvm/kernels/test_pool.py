from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import UsageError

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from deploykit_targets.tvm.kernels.expressions import Affine, limits_of
from deploykit_targets.tvm.kernels.isa import Isa
from deploykit_targets.tvm.kernels.pool import PoolShape, average_pool, max_pool

SHAPES = [
    PoolShape(1, 7, 7, 70, (3, 3), (2, 2), (1, 1, 1, 1)),
    PoolShape(2, 6, 5, 3, (2, 2), (2, 2)),
    PoolShape(1, 5, 8, 33, (1, 3), (1, 2), (0, 0, 2, 1)),
    PoolShape(1, 7, 7, 20, (7, 7)),  # global
    PoolShape(1, 4, 4, 1, (3, 2)),
]


def data(shape: PoolShape, dtype: str) -> np.ndarray:
    rng, size = np.random.default_rng(3), (shape.batch, shape.height, shape.width, shape.channels)
    if dtype == "float32":
        return rng.normal(size=size).astype(np.float32)
    low, high = limits_of(dtype)
    return rng.integers(low, high + 1, size).astype(dtype)


def windows(shape: PoolShape, x: np.ndarray) -> np.ndarray:
    """Every window, NaN outside the data: (batch, height, width, kernel height, kernel width, channels)."""
    top, bottom, left, right = shape.padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=np.nan)
    (height, width), (kernel_h, kernel_w), (sy, sx) = shape.output, shape.kernel, shape.stride
    rows = [
        [padded[:, y * sy : y * sy + kernel_h, x * sx : x * sx + kernel_w] for x in range(width)] for y in range(height)
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_max(shape: PoolShape, dtype: str, host_width: Isa, execute: Any) -> None:
    x = data(shape, dtype)
    result = execute(max_pool(shape, dtype), host_width, x, elements=shape.elements[1], dtype=dtype)
    np.testing.assert_array_equal(result, np.nanmax(windows(shape, x), axis=(3, 4)).ravel().astype(dtype))


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_average_of_int8(shape: PoolShape, count_padding: bool, host_width: Isa, execute: Any, within_one: Any) -> None:
    of, to = Affine(0.03, 7), Affine(0.02571, 12)  # a ratio without ties
    dtype = host_width.int8.activation
    x = data(shape, dtype)
    kernel = average_pool(shape, dtype, of=of, to=to, count_padding=count_padding)
    result = execute(kernel, host_width, x, elements=shape.elements[1], dtype=dtype)
    real = (windows(shape, x) - of.zero_point) * of.scale
    mean = np.nan_to_num(real).mean((3, 4)) if count_padding else np.nanmean(real, (3, 4))
    within_one(result, np.clip(np.rint(mean / to.scale + to.zero_point), *limits_of(dtype)))


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_average_of_float32(shape: PoolShape, count_padding: bool, host_width: Isa, execute: Any, close: Any) -> None:
    x = data(shape, "float32")
    kernel = average_pool(shape, "float32", count_padding=count_padding)
    result = execute(kernel, host_width, x, elements=shape.elements[1], dtype="float32")
    found = windows(shape, x)
    close(result, np.nan_to_num(found).mean((3, 4)) if count_padding else np.nanmean(found, (3, 4)))


def test_windows_of_padding_alone_are_refused() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        PoolShape(1, 4, 4, 1, (2, 2), padding=(2, 0, 0, 0))
