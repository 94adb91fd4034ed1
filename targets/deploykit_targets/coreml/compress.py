"""Weights of a float ML Program as 8- and 4-bit integers or as palettes; activations stay float16."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploykit.contract.precision import Precision

WEIGHT_ONLY = frozenset(
    {Precision.INT8_WEIGHT_ONLY, Precision.INT4_WEIGHT_ONLY, Precision.INT4_PALETTE, Precision.INT6_PALETTE}
)
PALETTE_BITS = {Precision.INT4_PALETTE: 4, Precision.INT6_PALETTE: 6}
_ROUNDS = 30

Array = np.ndarray[Any, Any]


def compress(model: Any, precision: Precision, *, threshold: int, block_size: int) -> Any:
    """Compress the weights of a coremltools `MLModel`.

    Args:
        precision: one of `WEIGHT_ONLY`.
        threshold: weights with fewer elements are left alone.
        block_size: of int4, along the input channels; a weight whose channels it does not divide gets one scale for
            each output channel.
    """
    import coremltools.optimize.coreml as optimize

    limit = threshold - 1  # coremltools compresses what is larger than its threshold
    if precision in PALETTE_BITS:
        bits = PALETTE_BITS[precision]
        palette = optimize.OpPalettizerConfig(
            mode="custom", lut_function=lambda weight: palettize(weight, bits), weight_threshold=limit
        )
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=palette))
    granularities: tuple[dict[str, Any], ...] = ({"granularity": "per_channel"},)
    if precision is Precision.INT4_WEIGHT_ONLY:
        granularities = ({"granularity": "per_block", "block_size": block_size}, *granularities)
    dtype = "int4" if precision is Precision.INT4_WEIGHT_ONLY else "int8"
    for granularity in granularities:
        config = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=dtype, weight_threshold=limit, **granularity
        )
        model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=config))
    return model


def palettize(weight: Array, bits: int) -> tuple[Array, Array]:
    """Lloyd's k-means in one dimension (S. Lloyd, "Least squares quantization in PCM", 1982), started at quantiles.

    Own code, because coremltools' wants a scikit-learn that is older than today's; deterministic, too.

    Args:
        weight: any shape, float.
        bits: the palette has 2 ** bits values.
    Returns:
        palette: dtype of `weight`, shape (2 ** bits,), ascending.
        indices: uint8, shape (weight.size,): the nearest value of the palette for each weight.
    """
    values = weight.reshape(-1).astype(np.float64)
    ordered = np.sort(values)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    palette = _start(ordered, 1 << bits)
    for _ in range(_ROUNDS):
        edges = np.searchsorted(ordered, (palette[1:] + palette[:-1]) / 2)
        bounds = np.concatenate(([0], edges, [ordered.size]))
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, palette)
        if np.array_equal(moved, palette):
            break
        palette = moved
    indices = np.searchsorted((palette[1:] + palette[:-1]) / 2, values)
    return palette.astype(weight.dtype), indices.astype(np.uint8)


def _start(ordered: Array, size: int) -> Array:
    """Half-way between quantiles and an even grid: quantiles alone leave the few large weights without a value."""
    quantiles = np.quantile(ordered, (np.arange(size) + 0.5) / size)
    grid = np.linspace(ordered[0], ordered[-1], size)
    return np.sort((quantiles + grid) / 2)
