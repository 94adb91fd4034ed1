"""Ranges from statistics, and scale and zero-point from ranges, against hand-computed and brute-force references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.contract.errors import CalibrationError, UsageError
from deploykit_calibration.ranges import affine_qparams, choose_range, expected_errors, parse_method
from deploykit_calibration.statistics import TensorStatistics

ALL = ["default", "minmax", "percentile", "percentile:99.999", "percentile:100", "entropy", "mse"]
RNG = np.random.default_rng(0)
GAUSS = RNG.standard_normal(200_000).astype(np.float32)
RELU = np.maximum(GAUSS, 0)
SILU = GAUSS / (1 + np.exp(-GAUSS))
OUTLIER = np.concatenate([GAUSS, np.array([60.0], dtype=np.float32)])


def quantization_error(x: np.ndarray, lo: float, hi: float, symmetric: bool, power: float = 2.0) -> float:
    low, high = (-128, 127) if symmetric else (0, 255)
    q = affine_qparams(lo, hi, quant_min=low, quant_max=high, symmetric=symmetric)
    scale, zero = float(q.scale), int(q.zero_point)
    back = (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale
    return float(np.mean(np.abs(back - x.astype(np.float64)) ** power))


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(ALL),
    st.booleans(),
)
def test_a_range_is_finite_holds_zero_and_stays_within_the_extremes(
    x: np.ndarray, method: str, symmetric: bool
) -> None:
    lo, hi = choose_range(TensorStatistics.of(x), method, symmetric=symmetric)
    assert np.isfinite([lo, hi]).all()
    assert lo <= 0.0 <= hi
    if symmetric:
        assert -lo == hi <= np.abs(x).max()
    else:
        assert min(x.min(), 0) <= lo and hi <= max(x.max(), 0)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-1e6, 0, width=32),
    st.floats(0, 1e6, width=32),
    st.booleans(),
    st.sampled_from([(-128, 127), (-127, 127), (0, 255), (0, 127), (-32768, 32767)]),
)
def test_quantize_dequantize_is_within_half_a_step(
    lo: float, hi: float, symmetric: bool, ints: tuple[int, int]
) -> None:
    q = affine_qparams(lo, hi, quant_min=ints[0], quant_max=ints[1], symmetric=symmetric)
    scale, zero = float(q.scale), int(q.zero_point)
    assert scale > 0 and ints[0] <= zero <= ints[1]
    x = np.linspace(lo, hi, 101)
    back = (np.clip(np.rint(x / scale) + zero, *ints) - zero) * scale
    # Half a step inside; the zero-point's own rounding and float32 scale can cost up to another half at the ends.
    assert np.abs(back - x).max() <= scale * (1.0 + 1e-3)
    assert (np.clip(np.rint(0.0 / scale) + zero, *ints) - zero) * scale == 0.0


def test_affine_uint8_by_hand() -> None:
    q = affine_qparams(-1.0, 4.1, quant_min=0, quant_max=255, symmetric=False)
    assert float(q.scale) == pytest.approx(0.02, rel=1e-6)  # float32
    assert int(q.zero_point) == 50


def test_symmetric_int8_by_hand_and_per_channel() -> None:
    q = affine_qparams([-1.27, 0.0, -0.5], [1.0, 0.0, 2.54], quant_min=-128, quant_max=127, symmetric=True)
    np.testing.assert_allclose(q.scale, [0.01, 1.0, 0.02], rtol=1e-6)  # float32; 1 for a channel of zeros
    np.testing.assert_array_equal(q.zero_point, [0, 0, 0])
    assert q.scale.dtype == np.float32 and q.zero_point.dtype == np.int32


def test_symmetric_uint8_has_its_zero_in_the_middle() -> None:
    q = affine_qparams(-1.27, 1.0, quant_min=0, quant_max=255, symmetric=True)
    assert (round(float(q.scale), 6), int(q.zero_point)) == (0.01, 128)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tensor_of_zeros_has_a_positive_scale(symmetric: bool) -> None:
    for s in (TensorStatistics.of(np.zeros(9, dtype=np.float32)), TensorStatistics.empty()):
        for method in ALL:
            assert choose_range(s, method, symmetric=symmetric) == (0.0, 0.0)
    assert float(affine_qparams(0.0, 0.0, quant_min=0, quant_max=255, symmetric=symmetric).scale) > 0.0


@pytest.mark.parametrize("constant", [3.0, -3.0])
def test_a_constant_tensor_is_covered(constant: float) -> None:
    s = TensorStatistics.of(np.full(100, constant, dtype=np.float32))
    assert choose_range(s, "minmax", symmetric=False) == (min(constant, 0.0), max(constant, 0.0))
    for method in ALL:
        lo, hi = choose_range(s, method, symmetric=False)
        assert max(-lo, hi) == pytest.approx(3.0, rel=2e-3)  # one bin


def test_a_range_that_is_not_finite_names_tensor_and_channel() -> None:
    with pytest.raises(CalibrationError, match=r"conv1, channel 1: \[0.0, nan\]"):
        affine_qparams([0.0, 0.0], [1.0, np.nan], quant_min=0, quant_max=255, symmetric=False, what="conv1")
    with pytest.raises(CalibrationError, match="finite range"):
        affine_qparams(1.0, -1.0, quant_min=0, quant_max=255, symmetric=False)


def test_unknown_methods_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"kl.*\n.*minmax, percentile, entropy, mse"):
        parse_method("kl")
    for wrong in ("percentile:abc", "percentile:20", "percentile:101", "mse:3"):
        with pytest.raises(UsageError):
            parse_method(wrong)
    assert parse_method("percentile:99.9") == ("percentile", 99.9)
    assert parse_method("percentile") == ("percentile", 99.99)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentiles_agree_with_numpy(percentile: float) -> None:
    s = TensorStatistics.of(GAUSS)
    lo, hi = choose_range(s, f"percentile:{percentile}", symmetric=False)
    expected = np.percentile(GAUSS, [100 - percentile, percentile])
    np.testing.assert_allclose([lo, hi], expected, atol=2 * s.bin_width)
    _, bound = choose_range(s, f"percentile:{percentile}", symmetric=True)
    assert bound == pytest.approx(np.percentile(np.abs(GAUSS), percentile), abs=2 * s.bin_width)


def test_percentiles_of_few_values_cut_nothing() -> None:
    x = np.array([-1.0, 0.5, 2.0], dtype=np.float32)
    assert choose_range(TensorStatistics.of(x), "percentile", symmetric=False) == (-1.0, 2.0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("x", [GAUSS, RELU, SILU, OUTLIER], ids=["gauss", "relu", "silu", "outlier"])
def test_mse_is_near_the_best_of_a_brute_force_search(x: np.ndarray, symmetric: bool) -> None:
    s = TensorStatistics.of(x)
    lo, hi = choose_range(s, "mse", symmetric=symmetric)
    widest = choose_range(s, "minmax", symmetric=symmetric)
    sweep = [quantization_error(x, widest[0] * f, widest[1] * f, symmetric) for f in np.geomspace(1, 0.02, 60)]
    # 15 %: the histogram stands for the values, and its bins are up to half a quantization step wide.
    assert quantization_error(x, lo, hi, symmetric) <= 1.15 * min(sweep)


@pytest.mark.parametrize(
    "x", [RELU, SILU, np.where(RNG.random(200_000) < 0.95, 0, RELU)], ids=["relu", "silu", "sparse"]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_entropy_does_not_collapse_onto_zero(x: np.ndarray, symmetric: bool) -> None:
    """The classic search sees the spike at zero as most of the distribution and clips the rest away."""
    s = TensorStatistics.of(x.astype(np.float32))
    error = quantization_error(x, *choose_range(s, "entropy", symmetric=symmetric), symmetric)
    widest = quantization_error(x, *choose_range(s, "minmax", symmetric=symmetric), symmetric)
    assert error <= 2.2 * widest  # the search's own bound of 2, and what the histogram blurs


def test_expected_errors_predict_measured_ones() -> None:
    s = TensorStatistics.of(GAUSS)
    ranges = np.array([[-4.0, 4.0], [-2.0, 3.0], [-1.0, 1.0]])
    for symmetric in (True, False):
        predicted = expected_errors(s, ranges, symmetric=symmetric)
        measured = [quantization_error(GAUSS, lo, hi, symmetric) for lo, hi in ranges]
        np.testing.assert_allclose(predicted, measured, rtol=0.05)  # bins of a fourteenth of a step and wider


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("x", [GAUSS, RELU, SILU, OUTLIER], ids=["gauss", "relu", "silu", "outlier"])
def test_the_default_is_near_the_best_of_a_brute_force_search(x: np.ndarray, symmetric: bool) -> None:
    s = TensorStatistics.of(x)
    lo, hi = choose_range(s, "default", symmetric=symmetric)
    widest = choose_range(s, "minmax", symmetric=symmetric)
    loss = [
        quantization_error(x, widest[0] * f, widest[1] * f, symmetric, power=2.5) for f in np.geomspace(1, 0.02, 60)
    ]
    # 15 %: as for mse
    assert quantization_error(x, lo, hi, symmetric, power=2.5) <= 1.15 * min(loss)


def test_the_default_clips_less_than_mse_and_never_beyond_8_bits() -> None:
    s = TensorStatistics.of(GAUSS)
    mse, default, widest = (choose_range(s, m, symmetric=True)[1] for m in ("mse", "default", "minmax"))
    assert mse < default < widest
    assert choose_range(s, "default", symmetric=True, bits=16)[1] == widest


def test_the_default_of_a_tensor_without_tails_is_minmax() -> None:
    s = TensorStatistics.of(RNG.uniform(-1, 1, 100_000).astype(np.float32))
    widest = choose_range(s, "minmax", symmetric=True)
    assert choose_range(s, "default", symmetric=True) == pytest.approx(widest, rel=0.01)  # a step is 0.8 %


@given(st.floats(-1e5, 0), st.floats(0, 1e5), st.booleans())
def test_scales_for_files_of_float16_are_its_values(lo: float, hi: float, symmetric: bool) -> None:
    """The next value that is not smaller, so that the range is still covered; never zero, never infinite."""
    details: dict[str, int] = {"quant_min": -128, "quant_max": 127}
    exact = float(affine_qparams(lo, hi, symmetric=symmetric, **details).scale)
    coarse = float(affine_qparams(lo, hi, symmetric=symmetric, float16=True, **details).scale)
    assert coarse == float(np.float16(coarse)) and 0 < coarse <= 65504
    assert exact <= coarse <= max(exact * (1 + 2**-10), 2**-14)
