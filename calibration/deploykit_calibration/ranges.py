"""Turn statistics into quantization ranges, and ranges into scale and zero-point.

Every method reads the same histogram, so a table can be asked for any of them afterwards:

    minmax      the exact extremes
    percentile  the extremes without the outermost parts of the samples ("percentile" is 99.99, or "percentile:99.9")
    entropy     least Kullback-Leibler divergence between the tensor and its quantized self
    mse         least expected squared error
    default     least expected error to the power 2.5 for 8 bit: between mse, which clips the largest values of trained
                networks, and minmax, which outliers widen; minmax for more bits

A range never exceeds the exact extremes, always holds zero, and is finite. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploykit.contract.errors import CalibrationError, UsageError
from deploykit_calibration.statistics import HALF_BINS, TensorStatistics

METHODS = ("default", "minmax", "percentile", "entropy", "mse")
DEFAULT_PERCENTILE = 99.99

Range = tuple[float, float]
Floats = NDArray[np.float64]
Loss = Callable[[Floats], Floats]

_ENTROPY_MAY_COST = 2.0  # entropy only looks at ranges whose expected squared error is at most this much higher
_CANDIDATES = 96
_GIVEN = "range"
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class QuantParams:
    """real = (quantized - zero_point) * scale.

    Attributes:
        scale: float32, > 0, the shape of the range it came from (() for per-tensor).
        zero_point: int32, same shape.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]


def affine_qparams(
    lo: ArrayLike,
    hi: ArrayLike,
    *,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    what: str = "the range",
    float16: bool = False,
) -> QuantParams:
    """Scale and zero-point of a uniform quantizer. Zero is always exactly representable.

    Affine: scale = (hi - lo) / (quant_max - quant_min), zero_point = round(quant_min - lo / scale).
    Symmetric: scale = max(|lo|, |hi|) / (quant_max - zero_point) with the zero-point in the middle (0 for signed).

    Args:
        lo, hi: lo <= hi, any equal shape; zero is added to the range.
        quant_min, quant_max: the integers of the quantized type, inclusive.
        what: the tensor's name, for the error.
        float16: the scale is the next value of float16 that is not smaller, for files that hold it so.
    Returns:
        float32 scale (1 for a tensor that is always zero) and int32 zero_point, shaped like lo.
    Raises:
        CalibrationError: a bound is NaN or infinite, or lo > hi; names the tensor and the channel.
    """
    low, high = np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)
    _check_bounds(low, high, what)
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    middle = (quant_min + quant_max + 1) // 2
    if symmetric:
        span, steps = np.maximum(-low, high), quant_max - middle
    else:
        span, steps = high - low, quant_max - quant_min
    scale = np.where(span > 0.0, np.maximum(span / steps, np.finfo(np.float32).tiny), 1.0).astype(np.float32)
    scale = _next_float16(scale) if float16 else scale
    if symmetric:
        zero_point = np.full(scale.shape, middle)
    else:
        zero_point = np.clip(np.rint(quant_min - low / scale.astype(np.float64)), quant_min, quant_max)
    return QuantParams(scale, zero_point.astype(np.int32))


def _next_float16(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest value of float16 that is not below a scale; its largest where there is none."""
    with np.errstate(over="ignore"):
        near = scale.astype(np.float16)
    above = np.where(near.astype(np.float32) < scale, np.nextafter(near, np.float16(np.inf)), near)
    return np.minimum(above, np.finfo(np.float16).max).astype(np.float32)


def _check_bounds(low: Floats, high: Floats, what: str) -> None:
    if low.shape != high.shape:
        raise CalibrationError(f"{what}: shapes {low.shape} of lo and {high.shape} of hi differ")
    bad = ~(np.isfinite(low) & np.isfinite(high) & (low <= high))
    if not bad.any():
        return
    where = np.unravel_index(int(np.argmax(bad)), bad.shape)
    channel = f", channel {where[0]}" if where else ""
    raise CalibrationError(f"{what}{channel}: [{low[where]}, {high[where]}] is not a finite range with lo <= hi")


def parse_method(method: str) -> tuple[str, float]:
    """Split a method into its name and its percentile (100 for those without).

    Raises:
        UsageError: no such method, or a percentile outside (50, 100].
    """
    name, _, argument = method.partition(":")
    if name not in METHODS or (argument and name != "percentile"):
        raise UsageError(
            f"there is no calibration method {method!r}", hint=f"one of {', '.join(METHODS)}, percentile:99.999"
        )
    if name != "percentile":
        return name, 100.0
    try:
        percentile = float(argument) if argument else DEFAULT_PERCENTILE
    except ValueError:
        percentile = math.nan
    if not 50.0 < percentile <= 100.0:
        raise UsageError(f"{method!r}: a percentile is a number above 50 and up to 100", hint="percentile:99.99")
    return name, percentile


def range_method(low: float, high: float) -> str:
    """The method of a recipe for a range that was found otherwise, such as by training: its two bounds."""
    return f"{_GIVEN}:{low!r}:{high!r}"


def given_range(method: str) -> Range | None:
    """The bounds of `range:LOW:HIGH`, which is for single tensors; None of other methods.

    Raises:
        UsageError: they are no finite numbers around zero.
    """
    name, _, bounds = method.partition(":")
    if name != _GIVEN:
        return None
    try:
        low, high = map(float, bounds.split(":"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0.0 <= high and low < high):
        raise UsageError(f"{method!r} is no range that holds zero", hint="range:LOW:HIGH, such as range:-1.5:2.25")
    return low, high


def choose_range(statistics: TensorStatistics, method: str = "default", *, symmetric: bool, bits: int = 8) -> Range:
    """The range that a quantizer should cover.

    Args:
        method: one of METHODS, or "percentile:<p>".
        symmetric: whether the quantizer is symmetric; then the range is (-a, a), a <= the largest magnitude.
        bits: the width of the quantized type; above 8, rounding is finer than the histogram and "default" is min-max.
    Returns:
        (lo, hi), finite, lo <= 0 <= hi; (0, 0) for a tensor that was never seen or is always zero.
    Raises:
        UsageError: unknown method.
    """
    name, percentile = parse_method(method)
    widest = _minmax(statistics, symmetric)
    exact = name == "minmax" or (name == "percentile" and percentile == 100.0)
    if exact or statistics.sampled == 0 or widest == (0.0, 0.0):
        return widest
    if name == "percentile":
        return _percentile(statistics, percentile, symmetric)
    if name == "entropy":
        return _entropy(statistics, symmetric, bits)
    if name == "mse":
        return _least_error(statistics, symmetric, bits, squared)
    return widest if bits > 8 else _least_error(statistics, symmetric, bits, _default_loss)


def squared(error: Floats) -> Floats:
    """The loss of `mse`."""
    return error * error


def _default_loss(error: Floats) -> Floats:
    """|error|^2.5: clipping, a few large errors, weighs more against rounding, many small ones, than in squares."""
    return error * error * np.sqrt(np.abs(error))


def expected_errors(
    statistics: TensorStatistics, ranges: Floats, *, symmetric: bool, bits: int = 8, loss: Loss = squared
) -> Floats:
    """Expected loss per element of quantizing the tensor with each range.

    Values count as lying in the middle of their bin; exact zeros cost nothing; the exact extremes count as one
    element each to the degree that sampling may have missed them.

    Args:
        ranges: float64, shape (n, 2), rows (lo, hi) that hold zero.
        loss: a function that gives the loss of errors in units of the tensor, element by element.
    Returns:
        float64, shape (n,), in units of the loss.
    """
    centres, weights = _support(statistics)
    ends = np.array([statistics.minimum, statistics.maximum])
    values = np.concatenate([centres, ends])
    missed = max(1.0 - statistics.sampled / statistics.count, 0.0) / statistics.count
    weights = np.concatenate([weights / max(weights.sum() + statistics.zeros, 1.0), [missed, missed]])
    scale, zero, quant_max = _grid(ranges, symmetric, bits)
    quantized = np.clip(np.rint(values / scale[:, None]), -zero[:, None], (quant_max - zero)[:, None])
    return np.asarray(loss(quantized * scale[:, None] - values) @ weights)


def _grid(ranges: Floats, symmetric: bool, bits: int) -> tuple[Floats, Floats, int]:
    """Scale, steps below zero, and steps in all, of the quantizer of each range."""
    steps = 2**bits - 1
    if symmetric:
        half = 2 ** (bits - 1) - 1
        scale: Floats = np.maximum(np.maximum(-ranges[:, 0], ranges[:, 1]) / half, _TINY)
        return scale, np.full(len(ranges), half + 1.0, dtype=np.float64), steps
    scale = np.maximum((ranges[:, 1] - ranges[:, 0]) / steps, _TINY)
    return scale, np.rint(-ranges[:, 0] / scale), steps


def _support(statistics: TensorStatistics) -> tuple[Floats, Floats]:
    """Centres and counts of the bins that hold anything but exact zeros."""
    counts = statistics.histogram.astype(np.float64)
    counts[HALF_BINS] -= statistics.zeros
    used = np.flatnonzero(counts)
    return (used - HALF_BINS + 0.5).astype(np.float64) * statistics.bin_width, counts[used]


def _minmax(statistics: TensorStatistics, symmetric: bool) -> Range:
    if statistics.count == 0:
        return 0.0, 0.0
    return _bounded(statistics, statistics.minimum, statistics.maximum, symmetric)


def _bounded(statistics: TensorStatistics, lo: float, hi: float, symmetric: bool) -> Range:
    """Never beyond the exact extremes, always with zero; made even where the quantizer is."""
    lo, hi = max(min(lo, 0.0), min(statistics.minimum, 0.0)), min(max(hi, 0.0), max(statistics.maximum, 0.0))
    if symmetric:
        magnitude = max(-lo, hi)
        return -magnitude + 0.0, magnitude
    return lo + 0.0, hi


def _percentile(statistics: TensorStatistics, percentile: float, symmetric: bool) -> Range:
    tail = (100.0 - percentile) / 100.0
    counts = statistics.histogram.astype(np.float64)
    if symmetric:
        magnitudes = counts[HALF_BINS:] + counts[HALF_BINS - 1 :: -1]
        bound = _cut(magnitudes, tail) * statistics.bin_width
        return _bounded(statistics, -bound, bound, symmetric)
    hi = (_cut(counts, tail) - HALF_BINS) * statistics.bin_width
    lo = (HALF_BINS - _cut(counts[::-1], tail)) * statistics.bin_width
    return _bounded(statistics, lo, hi, symmetric)


def _cut(counts: Floats, tail: float) -> float:
    """Position, in bins from the start, above which a `tail` of the counts lies; linear within a bin."""
    above = np.cumsum(counts[::-1])
    allowed = tail * float(above[-1])
    bin_from_end = int(np.searchsorted(above, allowed, side="right"))
    if bin_from_end >= len(counts):
        return 0.0
    inside = allowed - (float(above[bin_from_end - 1]) if bin_from_end else 0.0)
    # Less than one sample is not a part of a bin: few samples must not look like a cut.
    part = inside / float(counts[len(counts) - 1 - bin_from_end]) if inside >= 1.0 else 0.0
    return len(counts) - bin_from_end - part


def _least_error(statistics: TensorStatistics, symmetric: bool, bits: int, loss: Loss) -> Range:
    """Least expected loss: one sweep for symmetric, alternating sweeps of both ends for affine, then a finer one."""
    lo, hi = _minmax(statistics, symmetric)
    for fractions in (_coarse(), _fine()):
        if symmetric:
            lo, hi = _best(statistics, [(-hi * f, hi * f) for f in fractions], symmetric, bits, loss)
            continue
        for _ in range(2 if lo < 0.0 < hi else 1):
            upper = [(lo, hi * f) for f in fractions] if hi > 0.0 else [(lo, hi)]
            lo, hi = _best(statistics, upper, symmetric, bits, loss)
            lower = [(lo * f, hi) for f in fractions] if lo < 0.0 else [(lo, hi)]
            lo, hi = _best(statistics, lower, symmetric, bits, loss)
    return _bounded(statistics, lo, hi, symmetric)


def _coarse() -> list[float]:
    """Fractions of a bound, dense near one, down to where an outlier is a hundred times the bulk."""
    return [float(f) for f in np.geomspace(1.0, 0.01, _CANDIDATES)]


def _fine() -> list[float]:
    return [float(f) for f in np.linspace(0.96, 1.04, 17)]


def _best(statistics: TensorStatistics, ranges: list[Range], symmetric: bool, bits: int, loss: Loss) -> Range:
    bounded = [_bounded(statistics, lo, hi, symmetric) for lo, hi in ranges]
    errors = expected_errors(statistics, np.array(bounded), symmetric=symmetric, bits=bits, loss=loss)
    return bounded[int(np.argmin(errors))]


def _entropy(statistics: TensorStatistics, symmetric: bool, bits: int) -> Range:
    """Least divergence among the ranges that do not cost much in squared error.

    Two things keep it from collapsing on what ReLU, GELU and softmax leave near zero: exact zeros are not part of
    the distribution, because every candidate represents them exactly, and candidates are bounded in expected error.
    """
    lo, hi = _minmax(statistics, symmetric)
    candidates = np.array([_bounded(statistics, lo * f, hi * f, symmetric) for f in _coarse()])
    errors = expected_errors(statistics, candidates, symmetric=symmetric, bits=bits)
    centres, weights = _support(statistics)
    if weights.size == 0:
        return lo, hi
    allowed = [i for i in range(len(candidates)) if errors[i] <= _ENTROPY_MAY_COST * errors[0]]
    grids = zip(*_grid(candidates, symmetric, bits)[:2], strict=True)
    scored = list(grids)
    best = min(allowed, key=lambda i: _divergence(centres, weights, candidates[i], *scored[i]))
    return float(candidates[best, 0]), float(candidates[best, 1])


def _divergence(centres: Floats, weights: Floats, bounds: Floats, scale: Any, zero: Any) -> float:
    """KL(P || Q): P has what is clipped in its outermost bins; Q spreads each level over the bins that it covers."""
    inside = (centres >= bounds[0]) & (centres <= bounds[1])
    kept = weights[inside]
    if kept.size == 0:
        return math.inf
    reference = kept.copy()
    reference[0] += weights[centres < bounds[0]].sum()
    reference[-1] += weights[centres > bounds[1]].sum()
    levels = (np.rint(centres[inside] / scale) + zero).astype(np.int64)
    levels -= levels.min()
    spread = np.bincount(levels, weights=kept) / np.maximum(np.bincount(levels), 1)
    p, q = reference / reference.sum(), spread[levels] / kept.sum()
    return float(np.sum(p * np.log(p / q)))
