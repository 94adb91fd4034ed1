"""One convolution or dense layer as a step: its weights packed for the kernel, with what follows it in the graph.

What is computed with it: clipping, rounding, and the addition of a residual that is there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from deploykit_targets.tvm.emit import Emitter, Part, dtype_of, whole
from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16, to_bits
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
from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.kernels.expressions import UNSCALED, Affine, Expr
from deploykit_targets.tvm.kernels.packing import Bounded, fold_bounded, fold_requantization
from deploykit_targets.tvm.kernels.residual import Residual
from deploykit_targets.tvm.kernels.step_list import listed_layer
from deploykit_targets.tvm.ops.table import Call, Tail, consumers, is_dequantize, tail_of
from deploykit_targets.tvm.values import Array, Constant, View, elements

NHWC = (0, 2, 3, 1)
"""Memory order of the axes of an image, (batch, channels, height, width)."""
_FLOATS = ("float32", BFLOAT16)


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
    order: tuple[int, ...] = NHWC
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
        added = None if self.depthwise else _added(self, tail)
        return self.run(source, tail) if added is None else self.run(source, *added)

    def run(self, source: View, tail: Tail, residual: Added | None = None) -> View:
        """Add the step.

        Args:
            source: dense NHWC; padded, unless it is depthwise.
            tail: what follows the layer, or the addition where there is one.
            residual: what is added to it.
        """
        # its own rounding comes first, where a residual is added
        first = tail if residual is None else residual.own
        result = self.call.emit.new(self.shown or self.result_shape, tail.dtype, self.order, tail.affine)
        if self.depthwise:
            self._depthwise(source, result, tail)
        else:
            self._product(source, result, self._packed(first), tail, residual)
        for node in (*first.nodes, *tail.nodes):
            self.call.lowering.values[node] = result
        return result

    @property
    def macs(self) -> int:
        """Multiply-accumulates, without those of padding that a kernel adds."""
        return self.shape.batch * elements(self.result_shape[1:]) * elements(self.weight.shape[1:])

    def _values(self) -> Array:
        """The weights, as the step's dtype has them."""
        if self.of is not None:
            return self.weight.array
        real = self.weight.real.astype(np.float32)
        return to_bits(real) if self.dot.weight == BFLOAT16 else real

    def _packed(self, tail: Tail) -> Packed:
        """The plan, and what it reads.

        Args:
            tail: what follows the convolution itself.
        """
        listed = listed_layer(self.shape, self.dot, self._values()) if self.of is not None else None
        if listed is not None:
            constants = pack_conv_constants(listed.plan, *self.constants(tail.affine))
            return Packed(listed.plan, listed.weights, np.concatenate([constants, listed.steps]))
        small = self.bounded(tail)
        plan = plan_conv(self.shape, self.dot, bounded=small is not None)
        if plan.bounded and small is not None:
            constants = pack_bounded_constants(plan, small)
        else:
            constants = pack_conv_constants(plan, *self.constants(tail.affine))
        return Packed(plan, pack_conv(plan, self._values()), constants)

    def _product(self, source: View, result: View, packed: Packed, tail: Tail, residual: Added | None) -> None:
        emit, plan, dtype = self.call.emit, packed.plan, self.dot.activation
        finite_beyond(emit, source, plan)
        output, way = None if tail.dtype == dtype else tail.dtype, (plan.bounded, plan.listed, plan.tile)
        summand = None if residual is None else residual.summand(tail)
        emit.call(
            "conv",
            (plan.shape, plan.dot.mnemonic, dtype, tail.clip, summand, output, *way),
            lambda: conv(plan, limits=tail.clip, residual=summand, output=output),
            [
                whole(source, plan.input_elements),
                Part(emit.constant(packed.weights), packed.weights.size),
                Part(emit.constant(packed.constants), packed.constants.size),
                *([] if residual is None else [whole(residual.view)]),
            ],
            [whole(result)],
            macs=self.macs,
            integer=self.of is not None,
        )

    def _depthwise(self, source: View, result: View, tail: Tail) -> None:
        emit, dot, zero = self.call.emit, self.dot, 0 if self.of is None else self.of.zero_point
        bias, scale = self.constants(tail.affine)
        constants = bias if scale is None else np.concatenate([scale, bias])
        dots, small = scale is not None and fits(self.shape, dot), self.bounded(tail)
        if dots:
            weights = pack_depthwise_dots(self.shape, self._values())
            constants = constants if small is None else pack_depthwise_bounded(small)
        else:
            weights = pack_depthwise(self._values(), dot)

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
            macs=self.macs,
            integer=scale is not None,
        )


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer's plan, and its weights and constants in the order that the kernel of the plan reads."""

    plan: ConvPlan
    weights: Array
    constants: Array


@dataclass(frozen=True, eq=False)
class Added:
    """A residual that is added to a layer's result.

    Attributes:
        view: where it is, dense as the result.
        own: what follows the layer before the addition.
    """

    view: View
    own: Tail

    def summand(self, tail: Tail) -> Residual:
        """The residual as the kernel takes it.

        Args:
            tail: what follows the addition.
        """
        if tail.affine is None or tail.dtype == BFLOAT16:
            return Residual(dtype=self.view.dtype)
        return Residual(self.view.affine or UNSCALED, tail.affine, self.own.affine, self.own.clip)


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


def _added(layer: Layer, own: Tail) -> tuple[Tail, Added] | None:
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
    return tail, Added(c.emit.dense(other, layer.order), own)
