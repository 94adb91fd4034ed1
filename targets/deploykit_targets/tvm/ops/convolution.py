"""Convolutions in one or two dimensions: any padding, stride, dilation and groups.

Transposed ones are a product and a rearrangement, or a convolution over spread inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploykit_targets.tvm.kernels.bfloat16 import AS_FLOAT, BFLOAT16
from deploykit_targets.tvm.kernels.conv_plan import ConvShape
from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.ops.alias import reshaped
from deploykit_targets.tvm.ops.layer import NHWC, Layer
from deploykit_targets.tvm.ops.table import Call, NotCoveredError, Tail, affine_of, is_bfloat16, lowers
from deploykit_targets.tvm.values import Array, Constant, Tensor, Value, View


@dataclass(frozen=True)
class Window:
    """Sizes of a two-dimensional convolution: (vertical, horizontal), padding top, bottom, left, right."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


@lowers("aten.conv2d.default", "aten.conv1d.default", "aten.conv2d.padding", "aten.conv1d.padding")
def convolution(c: Call) -> Tensor:
    """conv1d and conv2d."""
    weight = c.constant("weight")
    assert weight is not None
    flat = weight.array.ndim == 3
    kernel = weight.array.shape[2:]
    stride, dilation = _pair(c["stride"], flat, 1), _pair(c["dilation"], flat, 1)
    if isinstance(c["padding"], str):
        padding = _named_padding(c["padding"], (1, *kernel) if flat else kernel, dilation)
    else:
        vertical, horizontal = _pair(c["padding"], flat, 0)
        padding = (vertical, vertical, horizontal, horizontal)
    window = Window(stride, padding, dilation, int(c["groups"]))
    value = c.tensor("input")
    spatial = value.shape[-1:] if flat else value.shape[-2:]
    batch = () if len(value.shape) == weight.array.ndim - 1 else value.shape[:1]
    image = reshaped(
        c.emit, value, (*(batch or (1,)), weight_inputs(weight, window), *((1,) if flat else ()), *spatial)
    )
    filters = replace(weight, array=weight.array[:, :, None]) if flat else weight
    return _convolved(c, image, filters, window, len(spatial))


def weight_inputs(weight: Constant, window: Window) -> int:
    """Input channels of all groups."""
    return weight.shape[1] * window.groups


@lowers("aten.convolution.default")
def general(c: Call) -> Value:
    """The form that PyTorch's own decompositions have."""
    return transposed(c) if c["transposed"] else convolution(c)


@lowers("aten.conv_transpose2d.input", "aten.conv_transpose1d.default")
def transposed(c: Call) -> Tensor:
    """Transposed convolutions: a product and a rearrangement where windows do not overlap, else over spread inputs."""
    weight = c.constant("weight")
    assert weight is not None
    flat = weight.array.ndim == 3
    value = c.tensor("input")
    real = weight.real[:, :, None] if flat else weight.real
    if flat:
        value = reshaped(c.emit, value, (*value.shape[:2], 1, value.shape[2]))
    stride, dilation, padding = (
        _pair(c[name], flat, n) for name, n in (("stride", 1), ("dilation", 1), ("padding", 0))
    )
    extra, groups = _pair(c["output_padding"], flat, 0), int(c["groups"])
    apart = stride == real.shape[2:] and (dilation, padding, extra, groups) == ((1, 1), (0, 0), (0, 0), 1)
    result = (
        _side_by_side(c, value, real) if apart else _spread(c, value, real, stride, dilation, padding, extra, groups)
    )
    return reshaped(c.emit, result, c.shape)


def _side_by_side(c: Call, value: Tensor, weight: Array) -> Tensor:
    """Every input makes a block of outputs by itself: a 1x1 convolution to (kernel, channels) columns, then moved."""
    inputs, columns, tall, wide = weight.shape
    batch, _, height, width = value.shape
    filters = Constant(weight.transpose(2, 3, 1, 0).reshape(tall * wide * columns, inputs, 1, 1))
    bias = c.constant("bias")
    repeated = None if bias is None else Constant(np.tile(bias.real, tall * wide))
    shape = ConvShape(batch, height, width, inputs, tall * wide * columns)
    dot = float_dot(c, value)
    layer = Layer(c, shape, dot, filters, repeated, None)
    blocks = layer.run(c.emit.dense(value, NHWC, real=dot.activation == "float32"), Tail((c.node,)))
    # (batch, height, width, tall, wide, columns) in memory
    step = blocks.strides[3] // (tall * wide)
    strides = (blocks.strides[0], 1, blocks.strides[2], wide * step, blocks.strides[3], step)
    moved = replace(blocks, shape=(batch, columns, height, tall, width, wide), strides=strides)
    target = c.emit.new((batch, columns, height, tall, width, wide), "float32", (0, 2, 3, 4, 5, 1))
    return c.emit.store(moved, target)


def _spread(
    c: Call,
    value: Tensor,
    weight: Array,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    extra: tuple[int, int],
    groups: int,
) -> Tensor:
    """A convolution with turned filters over inputs that are `stride` apart, zeros between."""
    batch, channels, height, width = value.shape
    kernel = weight.shape[2:]
    first = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if min(first) < 0:
        raise NotCoveredError("it cuts off more than its window")
    sizes = [(n - 1) * s + 1 for n, s in zip((height, width), stride, strict=True)]
    tall, wide = (n + 2 * f + e for n, f, e in zip(sizes, first, extra, strict=True))
    dot = float_dot(c, value)
    affine = AS_FLOAT if dot.activation == BFLOAT16 else None
    source = c.emit.new((batch, channels, tall, wide), dot.activation, NHWC, affine)
    c.emit.fill(source, 0)
    strides = source.strides
    offset = first[0] * strides[2] + first[1] * strides[3]
    apart = (strides[0], strides[1], strides[2] * stride[0], strides[3] * stride[1])
    c.emit.store(value, replace(source, shape=value.shape, strides=apart, offset=offset))
    per_group = weight.reshape(groups, channels // groups, *weight.shape[1:])[..., ::-1, ::-1]
    filters = Constant(per_group.swapaxes(1, 2).reshape(-1, channels // groups, *kernel).copy())
    shape = ConvShape(batch, tall, wide, channels, filters.shape[0], (kernel[0], kernel[1]), (1, 1), dilation, groups)
    return Layer(c, shape, dot, filters, c.constant("bias"), None).finish(source)


def float_dot(c: Call, value: Tensor) -> Dot:
    """The step for a layer over what is not held in eight bits."""
    return c.emit.isa.bfloat16 if is_bfloat16(value) else c.emit.isa.float32


def _pair(value: Any, flat: bool, missing: int) -> tuple[int, int]:
    """(vertical, horizontal) of an argument; of one dimension, vertically nothing."""
    numbers = [int(x) for x in value] if isinstance(value, (list, tuple)) else [int(value)]
    if flat:
        return missing, numbers[0]
    return numbers[0], numbers[-1]


def _named_padding(name: str, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    if name == "valid":
        return 0, 0, 0, 0
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    return top, bottom, left, right


def _convolved(c: Call, value: Tensor, weight: Constant, window: Window, spatial: int) -> View:
    """The convolution with its tail; the result has `spatial` axes behind its channels."""
    of = affine_of(value) if weight.scales is not None else None
    batch, channels, height, width = value.shape
    top, bottom, left, right = window.padding
    shape = ConvShape(
        batch,
        height + top + bottom,
        width + left + right,
        channels,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        window.stride,
        window.dilation,
        window.groups,
    )
    dot = c.emit.isa.int8 if of is not None else float_dot(c, value)
    real = dot.activation == "float32"
    rank = len(c.shape)
    order = (*range(rank - spatial - 1), *range(rank - spatial, rank), rank - spatial - 1)
    layer = Layer(c, shape, dot, weight, c.constant("bias"), of, c.shape, order, window.padding)
    if layer.depthwise:
        return layer.finish(c.emit.dense(value, NHWC, real=real))
    if real and affine_of(value) is not None:
        value = c.emit.dense(value, NHWC, real=True)
    return layer.finish(c.emit.padded(value, window.padding, 0 if of is None else of.zero_point))
