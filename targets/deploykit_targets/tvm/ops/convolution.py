"""Convolutions: any padding, stride, dilation and groups in one or two dimensions; transposed ones over spread inputs.

What follows is computed with it: clipping, rounding, and the addition of a residual that is there already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.fx import Node

from deploykit_targets.tvm.emit import Emitter, Part, dtype_of, whole
from deploykit_targets.tvm.kernels.bfloat16 import AS_FLOAT, BFLOAT16, to_bits
from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import (
    ConvPlan,
    ConvShape,
    pack_bounded_constants,
    pack_conv,
    pack_conv_constants,
    plan_conv,
)
from deploykit_targets.tvm.kernels.depthwise import depthwise, pack_depthwise
from deploykit_targets.tvm.kernels.depthwise_dots import (
    depthwise_dots,
    fits,
    pack_depthwise_bounded,
    pack_depthwise_dots,
)
from deploykit_targets.tvm.kernels.expressions import UNSCALED, Affine, Expr
from deploykit_targets.tvm.kernels.isa import Dot
from deploykit_targets.tvm.kernels.packing import Bounded, fold_bounded, fold_requantization
from deploykit_targets.tvm.kernels.residual import Residual
from deploykit_targets.tvm.kernels.step_list import listed_layer
from deploykit_targets.tvm.ops.alias import reshaped
from deploykit_targets.tvm.ops.table import (
    Call,
    NotCoveredError,
    Tail,
    affine_of,
    consumers,
    is_bfloat16,
    is_dequantize,
    lowers,
    tail_of,
)
from deploykit_targets.tvm.values import Array, Constant, Tensor, Value, View, elements

_NHWC = (0, 2, 3, 1)
_FLOATS = ("float32", BFLOAT16)


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
    blocks = layer.run(c.emit.dense(value, _NHWC, real=dot.activation == "float32"), Tail((c.node,)))
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
    source = c.emit.new((batch, channels, tall, wide), dot.activation, _NHWC, affine)
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
        return layer.finish(c.emit.dense(value, _NHWC, real=real))
    if real and affine_of(value) is not None:
        value = c.emit.dense(value, _NHWC, real=True)
    return layer.finish(c.emit.padded(value, window.padding, 0 if of is None else of.zero_point))


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution (or dense layer) with its weights.

    Attributes:
        shape: padding included.
        padding: top, bottom, left, right.
        of: quantization of the input; None computes in float32.
        shown: shape of the result, where it is not an image; then `order` is that of its axes.
    """

    call: Call
    shape: ConvShape
    dot: Dot
    weight: Constant
    bias: Constant | None
    of: Affine | None
    shown: tuple[int, ...] = ()
    order: tuple[int, ...] = _NHWC
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def depthwise(self) -> bool:
        """Whether the kernel for one filter per channel computes it; that one does not store int8 sums as float32."""
        rounded = self.of is None or tail_of(self.call.node).affine is not None
        return rounded and 1 < self.shape.groups == self.shape.channels == self.shape.columns

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        """Batch, channels, height, width."""
        return (self.shape.batch, self.shape.columns, *self.shape.output)

    def constants(self, to: Affine | None) -> tuple[Array, Array | None]:
        """Bias and scale per channel; the latter for integers only."""
        columns = self.shape.columns
        bias = np.zeros(columns, np.float32) if self.bias is None else self.bias.real.astype(np.float32)
        if self.of is None:
            return bias, None
        assert self.weight.scales is not None
        scale, folded = fold_requantization(
            self.weight.array.reshape(columns, -1).sum(axis=1, dtype=np.int64),
            bias,
            input_scale=self.of.scale,
            input_zero_point=self.of.zero_point,
            weight_scale=self.weight.scales,
            output_scale=1.0 if to is None else to.scale,
            output_zero_point=0 if to is None else to.zero_point,
        )
        return folded, scale

    def bounded(self, tail: Tail) -> Bounded | None:
        """The constants of a layer of integers whose sums are all small; None where they are not, or may not be."""
        if self.of is None or tail.affine is None or self.dot.saturate is None:
            return None
        assert self.weight.scales is not None
        bias = np.zeros(self.shape.columns, np.float32)
        if self.bias is not None:
            if self.bias.scales is None:
                return None  # not rounded to whole multiples
            bias = self.bias.real
        return fold_bounded(
            self.weight.array,
            bias,
            input_scale=self.of.scale,
            input_zero_point=self.of.zero_point,
            weight_scale=self.weight.scales,
            output_scale=tail.affine.scale,
            output_zero_point=tail.affine.zero_point,
        )

    def finish(self, source: View) -> View:
        """Add the step, with as much of what follows as its kernel computes."""
        tail = tail_of(self.call.node, of_integers=self.of is not None)
        joined = None if self.depthwise else _residual(self, tail)
        return self.run(source, tail) if joined is None else self.run(source, joined[0], joined[1], tail)

    def run(self, source: View, tail: Tail, joined: Joined | None = None, own: Tail | None = None) -> View:
        """Add the step.

        Args:
            source: dense NHWC; padded, unless it is depthwise.
            tail: what follows the layer, or the addition where there is one.
            joined: the residual that is added.
            own: with it: what follows the convolution before the addition.
        """
        emit, dot = self.call.emit, self.dot
        integer = self.of is not None
        # its own rounding comes first, where a residual is added
        first = tail if own is None else own
        bias, scale = self.constants(first.affine)
        values = self.weight.array if integer else self.weight.real.astype(np.float32)
        values = to_bits(values) if dot.weight == BFLOAT16 else values
        result = emit.new(self.shown or self.result_shape, tail.dtype, self.order, tail.affine)
        macs = self.shape.batch * elements(self.result_shape[1:]) * elements(self.weight.shape[1:])
        if self.depthwise:
            self._depthwise(source, result, values, bias, scale, tail, macs)
        else:
            small = self.bounded(first)
            listed = listed_layer(self.shape, dot, values) if integer else None
            plan = listed.plan if listed else plan_conv(self.shape, dot, bounded=small is not None)
            residual = None if joined is None else joined.residual(tail, own)
            finite_beyond(emit, source, plan)
            packed = listed.weights if listed else pack_conv(plan, values)
            if plan.bounded and small is not None:
                constants = pack_bounded_constants(plan, small)
            else:
                constants = pack_conv_constants(plan, bias, scale)
            if listed:
                constants = np.concatenate([constants, listed.steps])
            reads = [
                whole(source, plan.input_elements),
                Part(emit.constant(packed), packed.size),
                Part(emit.constant(constants), constants.size),
            ]
            if joined is not None:
                reads.append(whole(joined.view))
            output = None if tail.dtype == dot.activation else tail.dtype
            emit.call(
                "conv",
                (
                    plan.shape,
                    plan.dot.mnemonic,
                    dot.activation,
                    tail.clip,
                    residual,
                    output,
                    plan.bounded,
                    plan.listed,
                    plan.tile,
                ),
                lambda: conv(plan, limits=tail.clip, residual=residual, output=output),
                reads,
                [whole(result)],
                macs=macs,
                integer=integer,
            )
        for node in (*first.nodes, *tail.nodes):
            self.call.lowering.values[node] = result
        return result

    def _depthwise(
        self, source: View, result: View, values: Array, bias: Array, scale: Array | None, tail: Tail, macs: int
    ) -> None:
        emit, dot, zero = self.call.emit, self.dot, 0 if self.of is None else self.of.zero_point
        constants = bias if scale is None else np.concatenate([scale, bias])
        dots, small = scale is not None and fits(self.shape, dot), self.bounded(tail)
        if dots:
            weights = pack_depthwise_dots(self.shape, values)
            constants = constants if small is None else pack_depthwise_bounded(small)
        else:
            weights = pack_depthwise(values, dot)

        output = None if tail.dtype == dot.activation else tail.dtype

        def kernel() -> Expr:
            settings: Any = {"limits": tail.clip, "padding": self.padding, "zero": zero}
            if dots:
                return depthwise_dots(self.shape, dot, small=small is not None, **settings)
            return depthwise(self.shape, dot, output=output, **settings)

        emit.call(
            "depthwise",
            (self.shape, self.padding, zero, dot.mnemonic, dot.activation, tail.clip, output, dots, small is not None),
            kernel,
            [whole(source), Part(emit.constant(weights), weights.size), Part(emit.constant(constants), constants.size)],
            [whole(result)],
            macs=macs,
            integer=scale is not None,
        )


@dataclass(frozen=True, eq=False)
class Joined:
    """A residual that is added to a layer's result."""

    view: View

    def residual(self, tail: Tail, own: Tail | None) -> Residual:
        """The residual as the kernel takes it."""
        if tail.affine is None or tail.dtype == BFLOAT16:
            return Residual(dtype=self.view.dtype)
        assert own is not None
        return Residual(self.view.affine or UNSCALED, tail.affine, own.affine, own.clip)


def finite_beyond(emit: Emitter, source: View, plan: ConvPlan) -> None:
    """Zeros where a kernel reads beyond its input, and nothing else was written: no bits that zero cannot multiply.

    As many as the kernel of any variant reads, so that all have the same steps.
    """
    end = source.offset + elements(source.shape)
    needed = end + plan.dot.packed_run(plan.run) - plan.run
    if source.dtype != BFLOAT16 or needed == end:
        return
    writes = (part for step in emit.steps for part in step.writes if part.buffer is source.buffer)
    first = max((part.offset + part.elements for part in writes), default=0)
    if max(first, end) < needed:
        first = max(first, end)
        emit.fill(View(source.buffer, (needed - first,), (1,), first), 0)


def _residual(layer: Layer, own: Tail) -> tuple[Tail, Joined] | None:
    """The addition that follows a layer, and what it adds, where that is in memory as the layer's result will be."""
    c, last = layer.call, own.last
    if own.dtype == BFLOAT16:
        return None
    if own.affine is not None and consumers(last) == 1 and all(is_dequantize(user) for user in last.users):
        last = next(iter(last.users))
    elif own.affine is not None or own.limits is not None:
        return None
    if len(last.users) != 1:
        return None
    (add,) = last.users
    if str(add.target) != "aten.add.Tensor" or add.kwargs.get("alpha", 1) != 1:
        return None
    others = [argument for argument in add.args if argument is not last]
    if len(others) != 1 or not isinstance(others[0], Node) or others[0] not in c.lowering.values:
        return None
    other = c.lowering.tensor(others[0])
    tail = tail_of(add)
    eight_bits = tail.dtype not in _FLOATS
    if (
        other.shape != (layer.shown or layer.result_shape)
        or eight_bits != (own.affine is not None)
        or isinstance(other, Constant)
    ):
        return None
    if dtype_of(other) != tail.dtype if eight_bits else dtype_of(other) not in _FLOATS:
        return None
    return tail, Joined(c.emit.dense(other, layer.order))
