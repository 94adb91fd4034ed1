"""Packing is NumPy alone: these run without TVM."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit_targets.tvm.kernels.packing import (
    Bounded,
    bounded_of,
    fold_bounded,
    fold_requantization,
    pack_constants,
    pack_matrix,
    take_columns,
    vector_starts,
)


@given(columns=st.integers(1, 70), lanes=st.sampled_from([4, 8, 16]), more=st.integers(0, 3))
def test_every_column_is_in_a_vector_and_none_reads_beyond_the_last(columns: int, lanes: int, more: int) -> None:
    starts = vector_starts(columns, lanes, -(-columns // lanes) + more)
    covered = {column for start in starts for column in range(start, start + lanes)}
    assert set(range(columns)) <= covered
    assert columns < lanes or max(covered) == columns - 1


def test_the_last_vector_repeats_columns_of_the_one_before() -> None:
    np.testing.assert_array_equal(take_columns(np.arange(6), 4), [[0, 1, 2, 3], [2, 3, 4, 5]])


def test_columns_short_of_a_vector_are_filled_with_zeros() -> None:
    np.testing.assert_array_equal(take_columns(np.array([5, 6, 7]), 4), [[5, 6, 7, 0]])


def test_matrix_by_hand() -> None:
    weight = np.array([[[1, 2, 3]], [[4, 5, 6]]], dtype=np.int8)  # two columns, one line, a run of three
    packed = pack_matrix(weight, lanes=2, group=2, tile=1, dtype="int8")
    np.testing.assert_array_equal(packed[0, 0, :, 0], [[[1, 2], [4, 5]], [[3, 0], [6, 0]]])


@settings(max_examples=20, deadline=None)
@given(
    columns=st.integers(1, 40),
    lines=st.integers(1, 3),
    run=st.integers(1, 9),
    lanes=st.sampled_from([4, 8]),
    group=st.sampled_from([1, 2, 4]),
    tile=st.integers(1, 3),
)
def test_a_packed_matrix_multiplies_like_the_matrix(
    columns: int, lines: int, run: int, lanes: int, group: int, tile: int
) -> None:
    rng = np.random.default_rng(columns * 1000 + run)
    weight = rng.integers(-127, 128, (columns, lines, run)).astype(np.int8)
    packed = pack_matrix(weight, lanes=lanes, group=group, tile=tile, dtype="int16").astype(np.int64)
    blocks, _, steps = packed.shape[:3]
    inputs = np.zeros((lines, steps * group), dtype=np.int64)
    inputs[:, :run] = rng.integers(0, 256, (lines, run))
    sums = np.einsum("bksvlg,ksg->bvl", packed, inputs.reshape(lines, steps, group)).reshape(-1, lanes)
    expected = np.einsum("clr,lr->c", weight.astype(np.int64), inputs[:, :run])
    for start, vector in zip(vector_starts(columns, lanes, blocks * tile), sums, strict=True):
        width = min(lanes, columns)
        np.testing.assert_array_equal(vector[:width], expected[start : start + width])


def test_constants_lie_beside_their_vector() -> None:
    packed = pack_constants([np.array([1.0, 2, 3]), np.array([4.0, 5, 6])], lanes=2)
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed, [[[1, 2], [4, 5]], [[2, 3], [5, 6]]])


def test_folded_requantization_equals_the_definition() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, 20).astype(np.int64), rng.integers(-127, 128, (5, 20)).astype(np.int64)
    weight_scale, bias = rng.uniform(0.001, 0.01, 5), rng.normal(size=5)
    real = ((x - 37) * 0.02) @ (w * weight_scale[:, None]).T + bias
    scale, folded = fold_requantization(
        w.sum(1),
        bias,
        input_scale=0.02,
        input_zero_point=37,
        weight_scale=weight_scale,
        output_scale=0.05,
        output_zero_point=11,
    )
    np.testing.assert_allclose((w @ x) * scale + folded, real / 0.05 + 11, rtol=1e-5, atol=1e-3)


def test_one_weight_scale_serves_all_columns() -> None:
    scale, _ = fold_requantization(
        np.zeros(3),
        np.zeros(3),
        input_scale=1.0,
        input_zero_point=0,
        weight_scale=np.array([2.0]),
        output_scale=4.0,
        output_zero_point=0,
    )
    assert scale == pytest.approx([0.5, 0.5, 0.5])


def results_of(bounded: Bounded, sums: np.ndarray) -> np.ndarray:
    """What the kernels make of int32 sums: their bits are float32, and a product is rounded once, by its shift."""
    real = (bounded.start + sums).astype(np.int32).view(np.float32).astype(np.float64)
    return np.rint(real * bounded.scale.astype(np.float64) + bounded.shift) - 1.5 * 2**23


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    scale=st.floats(5e-7, 0.1),
    start=st.integers(-(2**20), 2**20),
    zero_point=st.integers(-128, 127),
    seed=st.integers(0),
)
def test_small_sums_are_read_as_float32_and_rounded_once(scale: float, start: int, zero_point: int, seed: int) -> None:
    scales, starts = np.full(2, scale, np.float32), np.array([start, 0])
    bounded = bounded_of(scales, starts, zero_point, np.full(2, 2**21))
    assert bounded is not None
    sums = np.random.default_rng(seed).integers(-(2**20), 2**20, (500, 2))
    real = (sums + starts) * scales.astype(np.float64) + zero_point
    # a scale moves by 16 units in its last place at most: 2**-19 of a result; starts by 2**-13 of a unit
    error = 2.0**-12 + np.abs(real) * 2.0**-19
    found = results_of(bounded, sums)
    assert (np.rint(real - error) <= found).all()
    assert (found <= np.rint(real + error)).all()


def test_sums_that_leave_no_room_are_not_read_as_float32() -> None:
    assert bounded_of(np.full(1, 0.01, np.float32), np.zeros(1), 0, np.array([1 << 22])) is None


def test_a_channel_that_training_has_switched_off_is_a_constant_and_the_others_stay_small() -> None:
    weight = np.full((2, 9), 100, np.int8)
    given = {"input_scale": 0.1, "input_zero_point": -5, "output_scale": 0.05, "output_zero_point": 4}
    small = fold_bounded(weight, np.array([0.5, 0.6]), weight_scale=np.array([1e-9, 1e-3]), **given)  # type: ignore[arg-type]
    assert small is not None
    sums = np.array([[-(2**16), 700], [2**16, -400]])
    start = 6000 + 5 * 900  # bias, and the input's zero point
    wanted = [[14, np.rint((700 + start) * 0.002) + 4], [14, np.rint((start - 400) * 0.002) + 4]]
    np.testing.assert_array_equal(results_of(small, sums), wanted)
