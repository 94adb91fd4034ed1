"""Dense layers, as convolutions of 1x1, and products of two activations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from deploykit_targets.tvm.emit import Part, whole
from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import ConvShape
from deploykit_targets.tvm.kernels.expressions import UNSCALED, Affine
from deploykit_targets.tvm.kernels.matmul import pack_operand, plan_matmul
from deploykit_targets.tvm.ops.alias import reshaped
from deploykit_targets.tvm.ops.convolution import float_dot
from deploykit_targets.tvm.ops.layer import Layer, finite_beyond
from deploykit_targets.tvm.ops.rows import rows_order
from deploykit_targets.tvm.ops.table import Call, NotCoveredError, affine_of, codes_of, is_bfloat16, lowers, tail_of
from deploykit_targets.tvm.values import Buffer, Constant, Tensor, View


@lowers("aten.linear.default")
def linear(c: Call) -> Tensor:
    """Rows of the last axis times a constant matrix."""
    weight = c.tensor("weight")
    if not isinstance(weight, Constant):
        return _run_time_weight(c)
    value = c.tensor("input")
    of = affine_of(value) if weight.scales is not None else None
    order = rows_order(value, [-1])
    dot = c.emit.isa.int8 if of is not None else float_dot(c, value)
    source = c.emit.dense(value, order, real=dot.activation == "float32")
    columns, inputs = weight.shape
    shape = ConvShape(1, 1, math.prod(value.shape[:-1]), inputs, columns)
    filters = replace(weight, array=weight.array.reshape(columns, inputs, 1, 1))
    layer = Layer(c, shape, dot, filters, c.constant("bias"), of, (*value.shape[:-1], columns), order)
    return layer.finish(source)


def _run_time_weight(c: Call) -> Tensor:
    raise NotCoveredError("its weight is computed at run time")


@lowers("aten.matmul.default", "aten.bmm.default", "aten.mm.default")
def matmul(c: Call) -> Tensor:
    """Products of two activations: (..., rows, inputs) x (..., inputs, columns)."""
    names = ("self", "other" if "other" in c.arguments else "mat2")
    first, second = (_activation(c, c.tensor(name)) for name in names)
    if min(len(first.shape), len(second.shape)) < 2:
        raise NotCoveredError("one operand is a vector")
    batch = c.shape[:-2]
    first, second = _broadcast(c, first, batch), _broadcast(c, second, batch)
    if len(c.shape) != 4:
        count = math.prod(batch)
        first = reshaped(c.emit, first, (1, count, *first.shape[-2:]))
        second = reshaped(c.emit, second, (1, count, *second.shape[-2:]))
    return _product(c, first, second)


def _activation(c: Call, value: Tensor) -> Tensor:
    """A stored operand with one scale as if it were computed: integers around the middle of their range."""
    if not isinstance(value, Constant) or value.scales is None or value.scales.size != 1:
        return value
    dtype = c.emit.isa.int8.activation
    middle = 128 if dtype == "uint8" else 0
    codes = (value.array.astype(np.int32) + middle).astype(dtype)
    plain = c.emit.view(Constant(codes))
    return replace(plain, affine=Affine(float(value.scales.ravel()[0]), middle))


def _broadcast(c: Call, value: Tensor, batch: tuple[int, ...]) -> Tensor:
    """An operand with the batch axes of the result."""
    if value.shape[:-2] == batch:
        return value
    view = c.emit.view(value)
    missing = len(batch) + 2 - len(view.shape)
    sizes, strides = (1,) * missing + view.shape, (0,) * missing + view.strides
    repeated = [0 if size == 1 else stride for size, stride in zip(sizes[:-2], strides[:-2], strict=True)]
    return replace(view, shape=(*batch, *view.shape[-2:]), strides=(*repeated, *strides[-2:]))


_HEADS_INSIDE = (0, 2, 1, 3)
"""Memory order of (batch, heads, rows, inputs): heads beside each other in each row."""


def _product(c: Call, first: Tensor, second: Tensor) -> Tensor:
    """(batch, heads, rows, inputs) x (batch, heads, inputs, columns)."""
    emit = c.emit
    of, by = codes_of(first), codes_of(second)
    dot = emit.isa.activations
    middle = 128 if dot.activation == "uint8" else 0
    integer = of is not None and by is not None and by.zero_point == middle
    if not integer:
        dot = emit.isa.bfloat16 if is_bfloat16(first) and is_bfloat16(second) else emit.isa.float32
    real = dot.activation == "float32"
    batch, heads, rows, inputs = first.shape
    columns = second.shape[-1]
    a = emit.dense(first, _HEADS_INSIDE, real=real)
    b_view = emit.view(second)
    transposed = b_view.strides[2] == 1 and b_view.strides[3] != 1
    b = emit.dense(b_view, (0, 3, 1, 2) if transposed else _HEADS_INSIDE, real=real)
    plan = plan_matmul(batch, rows, inputs, columns, dot, heads=heads)
    tail = tail_of(c.node, of_integers=integer)
    to = tail.affine or UNSCALED
    first_affine, second_affine = (of, by) if of and by and integer else (UNSCALED, UNSCALED)
    weights, constants = Buffer(plan.dot.weight, plan.weight_elements), Buffer("float32", plan.constant_elements)
    packing = (plan.shape, plan.dot.mnemonic, dot.activation, transposed, first_affine, second_affine, to)
    emit.call(
        "pack",
        packing,
        lambda: pack_operand(plan, transposed=transposed, first=first_affine, second=second_affine, to=to),
        [whole(b)],
        [Part(weights, plan.weight_elements), Part(constants, plan.constant_elements)],
    )
    result = emit.new((batch, heads, rows, columns), tail.dtype, _HEADS_INSIDE, tail.affine)
    output = None if tail.dtype == dot.activation else tail.dtype
    finite_beyond(emit, a, plan)
    emit.call(
        "matmul",
        (plan.shape, plan.dot.mnemonic, dot.activation, tail.clip, output),
        lambda: conv(plan, limits=tail.clip, output=output),
        [
            whole(a, plan.input_elements),
            Part(weights, plan.weight_elements),
            Part(constants, plan.constant_elements),
        ],
        [whole(result)],
        macs=batch * heads * rows * inputs * columns,
        integer=integer,
    )
    return _shown(c, result, tail.nodes)


def _shown(c: Call, result: View, nodes: tuple[object, ...]) -> Tensor:
    """The result with the shape that the graph gives it, for the product and what it swallowed."""
    shown = reshaped(c.emit, result, c.shape)
    for node in nodes:
        c.lowering.values[node] = shown  # type: ignore[index]
    return shown
