"""Palettes: the few values that stand for all elements of a weight."""

from __future__ import annotations

from typing import Any

import numpy as np

_ROUNDS = 30

Array = np.ndarray[Any, Any]


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
