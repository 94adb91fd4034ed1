"""Extremes and samples of one activation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit_calibration.sample_extremes import SampleExtremes
from deploykit_calibration.sampling import SAMPLE_SIZE, SAMPLES_PER_ROW, Sampler, extremes

RNG = torch.Generator().manual_seed(0)
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "with holes": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
}


def sampler(rows: int = 8) -> Sampler:
    made = Sampler(seed=0)
    made.begin(0, rows)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_extremes_and_count_are_exact_in_every_layout(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](torch.randn(2, 6, 5, 7, generator=RNG).to(dtype))
    seen = sampler().observe(x)
    assert (seen.minimum, seen.maximum) == extremes(x) == (float(x.min()), float(x.max()))
    assert seen.count == x.numel() == seen.sample.size


def test_a_small_tensor_is_taken_whole() -> None:
    x = torch.randn(100, generator=RNG)
    np.testing.assert_array_equal(np.sort(sampler().observe(x).sample), np.sort(x.numpy()))


def test_a_large_tensor_is_sampled_without_preference() -> None:
    """Values that repeat with the layout: every position of the period must be as likely as the others."""
    x = torch.arange(64.0).repeat(20_000)
    sample = sampler().observe(x).sample
    assert sample.size == SAMPLE_SIZE
    counts = np.bincount(sample.astype(int), minlength=64)
    # 1024 expected each; five standard deviations of a binomial count.
    assert np.abs(counts - SAMPLE_SIZE / 64).max() < 5 * 32


def test_each_batch_is_sampled_at_other_positions() -> None:
    x = torch.arange(1e6)
    made = sampler()
    first = made.observe(x).sample
    np.testing.assert_array_equal(first, made.observe(x).sample)
    made.begin(1, 8)
    second = made.observe(x).sample
    assert len(np.intersect1d(first, second)) < 0.2 * SAMPLE_SIZE


def test_the_sample_grows_with_the_batch() -> None:
    x = torch.zeros(1_000_000)
    assert [sampler(rows).observe(x).sample.size for rows in (1, 4, 64)] == [
        SAMPLES_PER_ROW,
        4 * SAMPLES_PER_ROW,
        SAMPLE_SIZE,
    ]


def test_a_sample_of_bfloat16_is_spread_over_what_rounds_to_it() -> None:
    """Else a histogram of it would have three empty bins of every four near the extremes."""
    exact = torch.rand(60_000, generator=RNG) + 1.0  # one octave: 128 values in bfloat16
    sample = sampler().observe(exact.bfloat16()).sample
    assert len(np.unique(sample)) > 40_000
    assert sample.min() >= 1.0 and sample.max() <= 2.0
    counts = np.histogram(sample, bins=1000, range=(1, 2))[0]
    # 60 expected in each; seven standard deviations, and half a rounding interval is missing at the ends.
    assert counts[8:-8].min() > 60 - 7 * 60**0.5
    assert counts[8:-8].max() < 60 + 7 * 60**0.5
    assert abs(sample.mean() - float(exact.mean())) < 1e-3


def test_zero_stays_zero_in_bfloat16() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-39], dtype=torch.bfloat16)
    sample = sampler().observe(x).sample
    assert (sample[:2] == 0.0).all() and np.count_nonzero(sample) == 3


def test_the_largest_bfloat16_stays_finite() -> None:
    x = torch.tensor([torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).min]).bfloat16()
    for _ in range(3):
        assert np.isfinite(sampler().observe(x.repeat(50)).sample).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_told_and_infinity_counted(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -torch.inf, 3.0, torch.inf], dtype=dtype)
    seen = sampler().observe(x)
    assert (seen.minimum, seen.maximum, seen.count, seen.infinite) == (1.0, 3.0, 2, 2)
    assert np.isnan(sampler().observe(torch.tensor([1.0, torch.nan, torch.inf], dtype=dtype)).minimum)
    large = torch.randn(200_000).to(dtype)
    large[77_777] = torch.nan
    assert np.isnan(sampler().observe(large).minimum)
    assert sampler().observe(torch.full((3,), torch.inf, dtype=dtype)).count == 0


def test_an_empty_tensor_counts_nothing() -> None:
    assert sampler().observe(torch.zeros(0, 3)).count == 0


@pytest.mark.parametrize("size", [6, 20_000])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "with holes"])
def test_each_sample_along_axis_0_has_extremes_and_repeated_ones_have_none(size: int, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(4, 2, size // 2, 1, generator=RNG))
    made = Sampler(seed=0)
    made.begin(0, rows=3, length=4)  # a batch of three that a static graph got filled up
    seen = made.observe(x)
    rows = x[:3].reshape(3, -1)
    assert seen.samples == SampleExtremes.of(rows.amin(1).tolist(), rows.amax(1).tolist())
    assert (seen.minimum, seen.maximum) == (float(x.min()), float(x.max()))


def test_a_tensor_without_an_axis_of_samples_is_one_sample() -> None:
    made = Sampler(seed=0)
    made.begin(0, rows=4, length=4)
    for x in (torch.randn(8, 3), torch.tensor(2.0), torch.randn(1, 4)):
        assert made.observe(x).samples == SampleExtremes.of([float(x.min())], [float(x.max())])
    made.begin(0, rows=4)
    assert made.observe(torch.randn(4, 3)).samples.count == 1


@pytest.mark.parametrize("size", [3, 5_000])
def test_nan_and_infinity_in_any_sample_are_told(size: int) -> None:
    made = Sampler(seed=0)
    made.begin(0, rows=3, length=3)
    for row in range(3):
        x = torch.randn(3, size)
        x[row, 1] = torch.nan
        assert np.isnan(made.observe(x).minimum)
        x[row, 1] = -torch.inf
        seen = made.observe(x)
        assert (seen.infinite, seen.samples.count) == (1, 0)
