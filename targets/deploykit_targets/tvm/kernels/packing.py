"""Weights and per-channel constants in the order in which the kernels read them. NumPy only; runs at compile time.

Columns (output channels) come in vectors of `lanes`. The last vector of a count that `lanes` does not divide starts
earlier and repeats columns of the one before: both write the same values, and no kernel needs a scalar tail.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def vector_starts(columns: int, lanes: int, vectors: int | None = None) -> list[int]:
    """First column of each vector.

    Args:
        columns: the number of columns to cover.
        lanes: columns per vector.
        vectors: how many there shall be, where a tile wants more than the columns need.
    """
    count = -(-columns // lanes) if vectors is None else vectors
    return [max(0, min(index * lanes, columns - lanes)) for index in range(count)]


def take_columns(array: Array, lanes: int, vectors: int | None = None) -> Array:
    """Split the first axis into vectors, zeros where there are fewer columns than lanes.

    Args:
        array: shape (columns, ...).
    Returns:
        Shape (vectors, lanes, ...), same dtype.
    """
    short = max(0, lanes - array.shape[0])
    padded = np.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1))
    starts = vector_starts(array.shape[0], lanes, vectors)
    return np.stack([padded[start : start + lanes] for start in starts])


def pack_matrix(weight: Array, *, lanes: int, group: int, tile: int, dtype: str, steps: int = 0) -> Array:
    """Pack the columns of a product for a kernel whose step takes `group` inputs for each of `lanes` columns.

    Args:
        weight: shape (columns, lines, run): `run` inputs that lie next to each other in memory, `lines` times.
        lanes, group, dtype: what the instruction set has.
        tile: column vectors that a kernel accumulates at once.
        steps: per line; as many as `run` needs where 0.
    Returns:
        Shape (blocks, lines, steps, tile, lanes, group), dtype `dtype`; inputs beyond `run` have weight zero.
    """
    columns, lines, run = weight.shape
    steps = steps or -(-run // group)
    vectors = math.ceil(math.ceil(columns / lanes) / tile) * tile
    padded = np.pad(weight, ((0, 0), (0, 0), (0, steps * group - run)))
    split = take_columns(padded, lanes, vectors).reshape(-1, tile, lanes, lines, steps, group)
    return np.ascontiguousarray(split.transpose(0, 3, 4, 1, 2, 5).astype(dtype))


def pack_constants(rows: list[Array], *, lanes: int, vectors: int | None = None) -> Array:
    """Interleave per-channel constants so that each column vector finds its own next to each other.

    Args:
        rows: float arrays, each of shape (columns,): scale and bias, or bias alone.
    Returns:
        float32, shape (vectors, len(rows), lanes).
    """
    split = [take_columns(np.asarray(row, dtype=np.float32), lanes, vectors) for row in rows]
    return np.ascontiguousarray(np.stack(split, axis=1))


BIASED_ZERO = 0x4B400000
"""The bits of 1.5 * 2**23 in float32: added to an integer below 2**22, they are those of the sum of both."""
_LARGEST_SUM = 1 << 22
_LARGEST_RESULT = (1 << 15) - 1


class Bounded(NamedTuple):
    """What becomes of a layer's sums where all of them are small, whatever the inputs.

    Attributes:
        scale: float32, shape (columns,).
        start: what each column's sum starts from, int32, shape (columns,): bias, and the input's zero point.
        zero_point: of the result: `output = round(sum * scale + zero_point)`.
    """

    scale: Array
    start: Array
    zero_point: int


def fold_bounded(
    weight: Array,
    bias: Array,
    *,
    input_scale: float,
    input_zero_point: int,
    weight_scale: Array,
    output_scale: float,
    output_zero_point: int,
) -> Bounded | None:
    """Quantization parameters for a kernel whose sums start from an integer bias; None where they could be too large.

    Sums must be below 2**22, and results below 2**15: then a sum that starts at `BIASED_ZERO` is the bits of a float32,
    and a result's lowest 16 bits are the result.

    Args:
        weight: int8, shape (columns, ...).
        bias: of whole multiples of input scale times weight scale, up to float32's error.
        input_scale, input_zero_point, weight_scale, output_scale, output_zero_point: as `fold_requantization` has them.
    """
    flat = weight.reshape(weight.shape[0], -1).astype(np.int64)
    product_scale = np.float64(input_scale) * np.broadcast_to(np.asarray(weight_scale, np.float64), (flat.shape[0],))
    start = np.rint(np.asarray(bias, np.float64) / product_scale) - input_zero_point * flat.sum(axis=1)
    highest = start + np.maximum(flat * 127, flat * -128).sum(axis=1)
    lowest = start + np.minimum(flat * 127, flat * -128).sum(axis=1)
    largest = np.maximum(np.abs(highest), np.abs(lowest)) + 1
    scale = product_scale / output_scale
    if largest.max(initial=0) >= _LARGEST_SUM or (largest * scale).max(initial=0) + 129 >= _LARGEST_RESULT:
        return None
    return Bounded(scale.astype(np.float32), start.astype(np.int32), output_zero_point)


def fold_requantization(
    weight_sum: Array,
    bias: Array,
    *,
    input_scale: float,
    input_zero_point: int,
    weight_scale: Array,
    output_scale: float,
    output_zero_point: int,
) -> tuple[Array, Array]:
    """Turn quantization parameters into the scale and bias that a kernel applies to its int32 sums.

    `output = round(sum * scale + bias)`: zero points and the layer's own bias are all in `bias`.

    Args:
        weight_sum: per column, sum of its quantized weights; shape (columns,).
        bias: the layer's float bias, shape (columns,).
        input_scale, input_zero_point: scale and zero point of the activations as the kernel reads them.
        weight_scale: shape (columns,) or (1,); weights are symmetric.
        output_scale, output_zero_point: scale and zero point of the result.
    Returns:
        scale and bias, float32, each of shape (columns,).
    """
    product_scale = np.float64(input_scale) * np.asarray(weight_scale, dtype=np.float64)
    scale = np.broadcast_to(product_scale / output_scale, weight_sum.shape)
    folded = np.asarray(bias, dtype=np.float64) / output_scale + output_zero_point
    return scale.astype(np.float32), (folded - input_zero_point * weight_sum * scale).astype(np.float32)
