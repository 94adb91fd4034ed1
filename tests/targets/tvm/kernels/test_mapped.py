"""Element by element over any strides, and the kernels that pick, spread and sum: against NumPy over random shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit_targets.tvm.kernels.border import border
from deploykit_targets.tvm.kernels.gather import gather
from deploykit_targets.tvm.kernels.mapped import Access, mapped
from deploykit_targets.tvm.kernels.reduce import reduce
from deploykit_targets.tvm.kernels.resample import resample

FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple)


def _strides(array: np.ndarray) -> tuple[int, ...]:
    return tuple(step // array.itemsize for step in array.strides)


@given(SIZES, st.randoms(use_true_random=False))
@FEW
def test_transposed_and_broadcast_sources(host_width: Any, execute: Any, sizes: Any, random: Any) -> None:
    """A transposed source plus one that repeats along some axes, written densely."""
    order = random.sample(range(len(sizes)), len(sizes))
    rng = np.random.default_rng(random.randrange(2**31))
    whole = rng.standard_normal([sizes[axis] for axis in order]).astype(np.float32)
    first = whole.transpose(np.argsort(order))
    small = rng.standard_normal([size if random.random() < 0.5 else 1 for size in sizes]).astype(np.float32)
    second = np.broadcast_to(small, sizes)
    target = Access("float32", _strides(np.empty(sizes, np.float32)))
    sources = [Access("float32", _strides(first)), Access("float32", _strides(second))]
    kernel = mapped(sizes, sources, target, lambda v, _: v[0] + v[1])
    found = execute(kernel, host_width, whole, small, elements=first.size, dtype="float32")
    np.testing.assert_array_equal(found, (first + second).ravel())


def test_a_part_of_a_larger_target(host_width: Any, execute: Any) -> None:
    x = np.arange(5 * 19, dtype=np.uint8).reshape(5, 19)
    kernel = mapped((5, 19), [Access("uint8", (19, 1))], Access("uint8", (40, 1), 7), lambda v, _: v[0])
    found = execute(kernel, host_width, x, elements=7 + 4 * 40 + 19, dtype="uint8")
    wanted = np.full(found.size, 99, np.uint8)
    for row in range(5):
        wanted[7 + 40 * row : 26 + 40 * row] = x[row]
    np.testing.assert_array_equal(found, wanted)


def test_channels_last_from_few_channels(host_width: Any, execute: Any) -> None:
    """The last axis is short: vectors run along the lines of the source."""
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 17)).astype(np.float32)
    moved = x.transpose(0, 2, 3, 1)
    target = Access("float32", _strides(np.empty(moved.shape, np.float32)))
    kernel = mapped(moved.shape, [Access("float32", _strides(moved))], target, lambda v, _: v[0])
    np.testing.assert_array_equal(execute(kernel, host_width, x, elements=x.size, dtype="float32"), moved.ravel())


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40), st.integers(1, 6))
@FEW
def test_gather(host_width: Any, execute: Any, outer: int, count: int, inner: int, picked: int) -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 255, (outer, count, inner), dtype=np.uint8)
    chosen = rng.integers(-count, count, picked)
    kernel = gather(outer, count, inner, picked, "uint8", "int64")
    found = execute(kernel, host_width, source, chosen, elements=outer * picked * inner, dtype="uint8")
    np.testing.assert_array_equal(found, source[:, chosen].ravel())


def test_gather_never_reads_outside(host_width: Any, execute: Any) -> None:
    source, chosen = np.arange(6, dtype=np.float32), np.array([-(2**40), -7, 6, 2**30])
    found = execute(gather(1, 6, 1, 4, "float32", "int64"), host_width, source, chosen, elements=4, dtype="float32")
    assert set(found) <= set(source)


@pytest.mark.parametrize("kind", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("length", [1, 7, 16, 37])
def test_reduce(host_width: Any, execute: Any, kind: str, length: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, length)).astype(np.float32)
    found = execute(reduce(3, length, kind), host_width, x, elements=3, dtype="float32")
    np.testing.assert_allclose(found, getattr(np, kind)(x, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sum", "amax", "amin"])
def test_reduce_integers(host_width: Any, execute: Any, kind: str) -> None:
    x = np.random.default_rng(0).integers(-(2**40), 2**40, (3, 21))
    found = execute(reduce(3, 21, kind, "int64"), host_width, x, elements=3, dtype="int64")
    np.testing.assert_array_equal(found, getattr(np, kind)(x, axis=1))


def test_resample(host_width: Any, execute: Any) -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, 5, 19)).astype(np.float32), rng.random((7, 3)).astype(np.float32)
    indices = rng.integers(0, 5, (7, 3)).astype(np.int32)
    found = execute(resample(2, 5, 19, 7, 3), host_width, x, indices, weights, elements=2 * 7 * 19, dtype="float32")
    wanted = np.einsum("ortc,rt->orc", x[:, indices], weights)
    np.testing.assert_allclose(found, wanted.ravel(), rtol=1e-5, atol=1e-5)


def test_border_leaves_what_is_inside(host_width: Any, execute: Any) -> None:
    kernel = border((2, 3, 4, 5), (1, 2, 0, 3), "uint8", value=7)
    found = execute(kernel, host_width, elements=2 * 6 * 7 * 5, dtype="uint8").reshape(2, 6, 7, 5)
    wanted = np.full((2, 6, 7, 5), 7, np.uint8)
    wanted[:, 1:4, 0:4] = 99  # what was there before
    np.testing.assert_array_equal(found, wanted)
