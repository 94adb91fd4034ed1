"""Pooling windows and means over all positions; between equal quantizations in integers."""

from __future__ import annotations

from typing import Any

from deploykit_targets.tvm.emit import whole
from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16
from deploykit_targets.tvm.kernels.expressions import UNSCALED
from deploykit_targets.tvm.kernels.pool import PoolShape, average_pool, max_pool
from deploykit_targets.tvm.ops.alias import reshaped
from deploykit_targets.tvm.ops.table import Call, NotCoveredError, codes_of, is_bfloat16, lowers, tail_of
from deploykit_targets.tvm.values import Tensor

_NHWC = (0, 2, 3, 1)


@lowers("aten.max_pool2d.default", "aten.max_pool1d.default")
def maximum(c: Call) -> Tensor:
    """max_pool1d and max_pool2d: integers stay as they are."""
    flat = len(c.shape) == 3
    if _pair(c["dilation"], flat, 1) != (1, 1):
        raise NotCoveredError("its window is dilated")
    value = _image(c, c.tensor("self"))
    shape = _window(c, value, flat)
    source = c.emit.dense(value, _NHWC)
    result = c.emit.new(_result_shape(value, shape), source.dtype, _NHWC, source.affine)
    key = (shape, source.dtype)
    c.emit.call("max_pool", key, lambda: max_pool(shape, source.dtype), [whole(source)], [whole(result)])
    return reshaped(c.emit, result, c.shape)


@lowers("aten.avg_pool2d.default", "aten.avg_pool1d.default")
def average(c: Call) -> Tensor:
    """avg_pool1d and avg_pool2d."""
    if c.arguments.get("divisor_override") is not None:
        raise NotCoveredError("it divides by a number of its own")
    value = _image(c, c.tensor("self"))
    flat = len(c.shape) == 3
    shape = _window(c, value, flat)
    if c["count_include_pad"] and shape.padding[::2] != shape.padding[1::2]:
        raise NotCoveredError("it rounds its size up and counts padding")
    return _averaged(c, value, shape, count_padding=bool(c["count_include_pad"]))


@lowers("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default", "aten.adaptive_avg_pool1d.default")
def adaptive(c: Call) -> Tensor:
    """Adaptive pooling whose windows are all of one size."""
    value = _image(c, c.tensor("self"))
    batch, channels, height, width = value.shape
    tall, wide = (1, *c.shape[2:])[-2:]
    if height % tall or width % wide:
        raise NotCoveredError(f"{height}x{width} is no multiple of {tall}x{wide}")
    kernel = height // tall, width // wide
    return _averaged(c, value, PoolShape(batch, height, width, channels, kernel, kernel))


def spatial_mean(c: Call) -> Tensor:
    """A mean over all positions of an image."""
    value = c.tensor("self")
    batch, channels, height, width = value.shape
    return _averaged(c, value, PoolShape(batch, height, width, channels, (height, width)))


def _averaged(c: Call, value: Tensor, shape: PoolShape, *, count_padding: bool = True) -> Tensor:
    tail = tail_of(c.node)
    of = codes_of(value)
    narrow = tail.dtype == BFLOAT16 and tail.limits is None
    integer = of is not None and tail.affine is not None and tail.limits is None and not narrow
    source = c.emit.dense(value, _NHWC, real=not (integer or is_bfloat16(value)))
    to, dtype = (tail.affine, tail.dtype) if integer or narrow else (None, "float32")
    result = c.emit.new(_result_shape(value, shape), dtype, _NHWC, to)
    quantized = {"of": of, "to": to} if integer else {"of": UNSCALED, "to": UNSCALED}
    c.emit.call(
        "average_pool",
        (shape, source.dtype, dtype, quantized["of"], quantized["to"], count_padding),
        lambda: average_pool(shape, source.dtype, count_padding=count_padding, output=dtype, **quantized),
        [whole(source)],
        [whole(result)],
    )
    shown = reshaped(c.emit, result, c.shape)
    for node in tail.nodes if integer or narrow else (c.node,):
        c.lowering.values[node] = shown
    return shown


def _image(c: Call, value: Tensor) -> Tensor:
    if len(value.shape) == 4:
        return value
    if len(value.shape) == 3:
        batch, channels, length = value.shape
        return reshaped(c.emit, value, (batch, channels, 1, length))
    raise NotCoveredError(f"it pools {len(value.shape) - 2} dimensions of a batch")


def _window(c: Call, value: Tensor, flat: bool) -> PoolShape:
    kernel = _pair(c["kernel_size"], flat, 1)
    stride = _pair(c["stride"], flat, 1) if c["stride"] else kernel
    vertical, horizontal = _pair(c["padding"], flat, 0)
    batch, channels, height, width = value.shape
    tall, wide = (1, *c.shape[2:])[-2:]
    # with ceil_mode the last window may lie beyond the border
    bottom = max(vertical, (tall - 1) * stride[0] + kernel[0] - height - vertical)
    right = max(horizontal, (wide - 1) * stride[1] + kernel[1] - width - horizontal)
    if bool(c["ceil_mode"]):
        padding = (vertical, bottom, horizontal, right)
    else:
        padding = (vertical, vertical, horizontal, horizontal)
    return PoolShape(batch, height, width, channels, kernel, stride, padding)


def _pair(value: Any, flat: bool, missing: int) -> tuple[int, int]:
    numbers = [int(x) for x in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (missing, numbers[0]) if flat else (numbers[0], numbers[-1])


def _result_shape(value: Tensor, shape: PoolShape) -> tuple[int, int, int, int]:
    return value.shape[0], value.shape[1], *shape.output
