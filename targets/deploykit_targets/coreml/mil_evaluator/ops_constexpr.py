"""Compressed weights: the `constexpr_*` ops of iOS16 to iOS18, decompressed to dense tensors.

iOS16 packs indices and masks in bytes (least significant bit first) with a separate shape; iOS18 has typed sub-byte
tensors, blocks and groups. Arithmetic is in float32, rounded once to the declared type by the executor.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.operation import Op, ints, moves, per_channel, rounds

Number = Tensor | float | int


def _constexpr_cast(source_val: Tensor | float, output_dtype: str) -> Tensor:
    del output_dtype  # fp32 is the only one, and the source is carried in it already
    return torch.as_tensor(source_val, dtype=torch.float32)


def _constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Number, scale: Number, axis: int) -> Tensor:
    """scale * (data - zero_point), scale and zero point per tensor or along `axis`."""
    factor, offset = (_along(value, quantized_data.ndim, axis) for value in (scale, zero_point))
    return (quantized_data.to(torch.float32) - offset) * factor


def _along(value: Number, rank: int, axis: int) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float32)
    return tensor if tensor.ndim == 0 else per_channel(tensor, rank, axis % rank)


def blockwise(parameter: Tensor, shape: torch.Size) -> Tensor:
    """`parameter` repeated along each axis so that it has `shape`; each entry covers a block."""
    for axis, size in enumerate(shape):
        repeats = size // parameter.shape[axis]
        if repeats > 1 and parameter.shape[axis] > 1:
            parameter = parameter.repeat_interleave(repeats, dim=axis)
    return parameter


def _constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), one scale and offset per block."""
    value = data.to(torch.float32)
    if offset is not None:
        value = value - blockwise(offset.to(torch.float32), data.shape)
    return value * blockwise(scale, data.shape)


# --- palettes -------------------------------------------------------------------------------------------------


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """`count` unsigned integers of `bits` bits from bytes, least significant bit first -> int64 (count,)."""
    planes = (packed.to(torch.int64)[:, None] >> torch.arange(8)) & 1
    stream = planes.reshape(-1)[: count * bits].reshape(count, bits)
    return (stream << torch.arange(bits)).sum(-1)


def _constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: int | None = None
) -> Tensor:
    """iOS16: packed indices, one table, `shape`. iOS18: table (*groups, palettes, vector), grouped by blocks."""
    if shape is not None:
        sizes = ints(shape)
        return lut[unpack_bits(indices, int(math.log2(len(lut))), math.prod(sizes))].reshape(sizes)
    return palette_lookup(indices, lut, vector_axis)


def palette_lookup(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    """Dense tensor of indices (*K) in tables lut (*groups, palettes, vector).

    With vectors, each index becomes `vector` elements along `vector_axis`.
    """
    rank, palettes, vector = indices.ndim, lut.shape[-2], lut.shape[-1]
    tables = torch.arange(lut.shape[:-2].numel()).reshape(lut.shape[:-2])
    which = blockwise(tables, indices.shape).expand(indices.shape)
    dense = lut.reshape(-1, vector)[which * palettes + indices.to(torch.int64)]  # (*K, vector)
    if vector == 1:
        return dense[..., 0]
    axis = (vector_axis or 0) % rank
    return dense.movedim(-1, axis + 1).flatten(axis, axis + 1)


# --- sparse ---------------------------------------------------------------------------------------------------


def _constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """Values at the places where the mask is set, zeros elsewhere; iOS16 packs the mask in bytes."""
    if shape is None:
        return spread(nonzero_data, mask)
    sizes = ints(shape)
    return spread(nonzero_data, unpack_bits(mask, 1, math.prod(sizes))).reshape(sizes)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Flat `values` at the set places of `mask`, in row-major order."""
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter_(mask != 0, values)


def _constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """(mask, values) of sparse palette indices; vectors repeat the mask along `vector_axis`."""
    dense = palette_lookup(spread(indices_nonzero_data, indices_mask), lut, vector_axis)
    vector = lut.shape[-1]
    mask = indices_mask
    if vector > 1:
        mask = mask.repeat_interleave(vector, dim=(vector_axis or 0) % mask.ndim)
    return mask, dense[mask != 0]


def _constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mask, values), the values shifted and scaled by the block that they lie in."""
    dense = _constexpr_blockwise_shift_scale(spread(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


OPS: Final[dict[str, Op]] = {
    "constexpr_affine_dequantize": rounds(_constexpr_affine_dequantize),
    "constexpr_blockwise_shift_scale": rounds(_constexpr_blockwise_shift_scale),
    "constexpr_cast": moves(_constexpr_cast),
    "constexpr_lut_to_dense": moves(_constexpr_lut_to_dense),
    "constexpr_lut_to_sparse": moves(_constexpr_lut_to_sparse),
    "constexpr_sparse_blockwise_shift_scale": rounds(_constexpr_sparse_blockwise_shift_scale),
    "constexpr_sparse_to_dense": moves(_constexpr_sparse_to_dense),
}
"""Rules of this family, by MIL name."""
