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


_ZERO = 3 << 22  # 1.5 * 2**23, whose float32 has no fraction: so have all integers less than 2**22 away from it
_ZERO_BITS = 0x4B400000  # of that float32; a sum that starts at them is the bits of `_ZERO` plus the sum
_LARGEST_SUM = 1 << 22
_LARGEST_RESULT = (1 << 15) - 1
_LARGEST_SHIFT = (1 << 24) - 1  # the last integer behind which float32 leaves some out
_LARGEST_ERROR = 2.0**-13  # of a result, in units
_TRIED = np.sort(np.random.default_rng(0).random(512))  # where between the smallest and the largest move
_UNITS = (0, *(sign * units for units in range(1, 17) for sign in (1, -1)))
_CONSTANT = 2.0**-5  # of a unit: a result that moves by less, whatever the inputs, is taken for a constant


class Bounded(NamedTuple):
    """What becomes of a layer's sums where all of them are small, whatever the inputs.

    `output = round(sum * scale + shift)`, of a sum whose bits are read as float32.

    Attributes:
        scale: float32, shape (columns,).
        start: what each column's sum starts from, int32, shape (columns,): bias, the input's zero point, and what
            makes a float32 of it.
        shift: float32, shape (columns,): 1.5 * 2**23, which rounds; the result's zero point; less what makes a float32
            of the sum.
    """

    scale: Array
    start: Array
    shift: Array


def bounded_of(scale: Array, start: Array, zero_point: Array | int, largest: Array) -> Bounded | None:
    """The constants of results `sum * scale + zero_point`; None where those cannot be had.

    A sum is an integer, and the float32 that its bits are is `_ZERO` more. That much times the scale is to be a whole
    number, which the shift takes off again exactly; so the start is moved to where it is one, within 2**-13.

    Args:
        scale: float32, shape (columns,).
        start: what each column's sum starts from: bias and zero point, shape (columns,).
        zero_point: of the result; of each column where it is an array.
        largest: the largest magnitude that each column's sums can have, start included; shape (columns,).
    """
    if largest.max(initial=0) >= _LARGEST_SUM:
        return None
    found = [_to_whole(s, _LARGEST_SUM - 1 - int(most)) for s, most in zip(scale, largest, strict=True)]
    if None in found:
        return None
    near, moves, wholes = (np.array(column) for column in zip(*found, strict=True))
    shift = _ZERO + zero_point - wholes
    if (np.abs(shift) > _LARGEST_SHIFT).any():
        return None
    bits = start.astype(np.int64) + moves + _ZERO_BITS
    return Bounded(near.astype(np.float32), bits.astype(np.int32), shift.astype(np.float32))


def _to_whole(scale: float, room: int) -> tuple[float, int, int] | None:
    """A scale within a few units in its last place, a move up to `room`, and the whole number that their product is.

    The product is that of `_ZERO` and the move with the scale. Close to a fraction of small numbers no move gives a
    whole one, but then scales next to it have some.
    """
    for units in _UNITS:
        near = np.float64(np.float32(scale * (1 + units * 2.0**-23)))
        if near == 0:
            return 0.0, 0, 0
        wholes = np.rint((_ZERO + (2 * _TRIED - 1) * room) * near)
        moves = np.clip(np.rint(wholes / near) - _ZERO, -room, room)
        products = (_ZERO + moves) * near  # exact: 24 by 24 bits
        errors = np.abs(products - np.rint(products))
        best = int(errors.argmin())
        if errors[best] <= _LARGEST_ERROR:
            return float(near), int(moves[best]), int(np.rint(products[best]))
    return None


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

    Sums must be below 2**22, and results below 2**15: then a sum is the bits of a float32, and a result's lowest 16
    bits are the result.

    Args:
        weight: int8, shape (columns, ...).
        bias: of whole multiples of input scale times weight scale, up to float32's error.
        input_scale, input_zero_point, weight_scale, output_scale, output_zero_point: as `fold_requantization` has them.
    """
    flat = weight.reshape(weight.shape[0], -1).astype(np.int64)
    product_scale = np.float64(input_scale) * np.broadcast_to(np.asarray(weight_scale, np.float64), (flat.shape[0],))
    start = np.rint(np.asarray(bias, np.float64) / product_scale) - input_zero_point * flat.sum(axis=1)
    highest, lowest = (extreme(flat * 127, flat * -128).sum(axis=1) for extreme in (np.maximum, np.minimum))
    scale = product_scale / output_scale
    still = (highest - lowest) * scale < _CONSTANT  # as of channels that training has switched off
    middle = np.where(still, (start + (highest + lowest) / 2) * scale, 0.0)
    start, scale = np.where(still, 0, start), np.where(still, 0.0, scale)
    largest = np.maximum(np.abs(start + highest), np.abs(start + lowest)) + 1
    if (largest * scale).max(initial=0) + 129 >= _LARGEST_RESULT:
        return None
    zero_point = output_zero_point + np.rint(np.clip(middle, -256, 256))
    return bounded_of(scale.astype(np.float32), start, zero_point, largest)


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
