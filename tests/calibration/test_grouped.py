"""Integers and scales of weights whose neighbours share a scale, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.contract.formats import INT4_CHANNELS, INT8_DIVIDED, PerGroup, TensorScheme
from deploykit_calibration.grouped import in_groups

FURTHEST = TensorScheme("int4", quant_min=-8, quant_max=7, granularity=PerGroup(4), furthest=True)
BLOCKS = replace(INT4_CHANNELS, granularity=PerGroup(4))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 11), st.integers(1, 3), st.sampled_from([BLOCKS, INT8_DIVIDED]), st.booleans())
def test_codes_and_scales_are_those_of_each_run(
    outer: int, inner: int, taps: int, form: TensorScheme, half: bool
) -> None:
    weight = np.random.default_rng(outer * 100 + inner).normal(size=(outer, inner, taps)).astype(np.float32)
    found = in_groups(torch.from_numpy(weight), form, float16_scales=half)
    size = form.granularity.size or inner  # type: ignore[union-attr]
    for start in range(0, inner, size):
        run = weight[:, start : start + size].reshape(outer, -1)
        scale = np.abs(run).max(1, keepdims=True) / np.float32(form.quant_max)
        scale = scale.astype(np.float16).astype(np.float32) if half else scale
        expected = np.clip(np.rint(run / scale), form.quant_min, form.quant_max)
        np.testing.assert_array_equal(found.scales[:, start // size], scale)
        np.testing.assert_array_equal(found.codes[:, start // size, : run.shape[1]], expected)
        np.testing.assert_array_equal(
            found.values()[:, start : start + size].reshape(outer, -1), (expected * scale).astype(np.float32)
        )


def test_the_first_of_two_that_are_as_far_gives_the_scale_its_sign() -> None:
    found = in_groups(torch.tensor([[1.0, -4.0, 4.0, 2.0]]), FURTHEST)
    assert found.scales.item() == 0.5 and found.codes.flatten().tolist() == [2, -8, 7, 4]


@pytest.mark.parametrize("form", [FURTHEST, BLOCKS])
@pytest.mark.parametrize("size", [0.0, 1e-45])
def test_nothing_is_divided_by_zero(form: TensorScheme, size: float) -> None:
    # 1e-45 is the smallest number of float32: a seventh or an eighth of it is zero
    found = in_groups(torch.full((2, 6), size), form)
    assert (found.scales == 1).all() and not found.codes.any() and not found.values().any()


def test_scales_of_float16_are_normal_numbers_of_either_sign() -> None:
    found = in_groups(torch.tensor([[1e-9, 0.0, 0.0, 0.0], [-1e-9, 0.0, 0.0, 0.0]]), FURTHEST, float16_scales=True)
    tiny = torch.finfo(torch.float16).tiny
    assert found.scales.flatten().tolist() == [-tiny, tiny]


def test_a_short_last_run_is_filled_up_and_cut_again() -> None:
    weight = torch.arange(12.0).reshape(2, 6)
    found = in_groups(weight, BLOCKS)
    assert found.codes.shape == (2, 2, 4) and found.matrix().shape == weight.shape == found.values().shape
    assert found.matrix().dtype == torch.int8
