# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Products of two activations, as in attention: the second is packed by a kernel of its own, then `conv.conv` runs.

Heads lie beside each other in the channels, as projections leave them: no head is moved. A dense layer, whose second
operand is constant, is a 1x1 convolution instead.

Refused: a second operand whose zero point is not the middle of its range, as each product would then need a sum over
the rows of the first one; calibrate it symmetrically.
"""

from __future__ import annotations

from tvm.script import tirx as T

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.conv_plan import ConvPlan, ConvShape, plan_conv
from deploykit_targets.tvm.kernels.expressions import UNSCALED, Affine, Expr, on_stack
from deploykit_targets.tvm.kernels.isa import Dot


def plan_matmul(batch: int, rows: int, inputs: int, columns: int, dot: Dot, *, heads: int = 1) -> ConvPlan:
    """Plan `(batch, rows, heads * inputs) x operand -> (batch, rows, heads * columns)` for `conv.conv`.

    Args:
        rows, inputs, columns: the sizes of one head's product.
        dot: precision and instruction set.
    """
    shape = ConvShape(batch, 1, rows, heads * inputs, heads * columns, groups=heads)
    return plan_conv(shape, dot, weights_per_image=True)


def pack_operand(
    plan: ConvPlan,
    *,
    transposed: bool,
    first: Affine = UNSCALED,
    second: Affine = UNSCALED,
    to: Affine = UNSCALED,
    factor: float = 1.0,
) -> Expr:
    """Generate the kernel that packs the second operand: (operand, packed weights, packed constants), flat.

    Args:
        plan: the plan of `plan_matmul`.
        transposed: the operand is (batch, columns, heads * inputs), as keys are; else (batch, inputs, heads * columns).
        first, second, to: quantization of both operands and the result; unused for float32.
        factor: multiplies the result: attention's 1 / sqrt(size); for int8 only.
    Raises:
        UsageError: the zero point of `second` is not 128 for uint8, 0 for int8.
    """
    dot, heads, sets = plan.dot, plan.shape.groups, plan.weight_sets
    blocks, steps, tile, lanes, group = plan.packing
    middle = 128 if dot.activation == "uint8" else 0
    if dot.quantized and second.zero_point != middle:
        raise UsageError(
            f"matmul: the second operand has zero point {second.zero_point}, and kernels need {middle}",
            hint="quantize it symmetrically",
        )
    inputs, columns = plan.run, plan.group_columns
    scale = first.scale * second.scale / to.scale * factor
    total = "int32" if dot.quantized else "float32"
    parts = 2 if dot.quantized else 1

    def start(task: Expr, v: Expr) -> Expr:
        return T.max(0, T.min((task % blocks * tile + v) * lanes, columns - lanes))

    def at(task: Expr, k: Expr, column: Expr) -> Expr:
        image, head = task // blocks // heads, task // blocks % heads
        if transposed:
            return ((image * columns + column) * heads + head) * inputs + k
        return ((image * inputs + k) * heads + head) * columns + column

    def value(b: Expr, task: Expr, k: Expr, column: Expr) -> Expr:
        """Zero beyond the operand."""
        centred = T.Cast(total, b[at(task, k, column)]) - T.Cast(total, middle if dot.quantized else 0)
        return T.if_then_else(T.And(k < inputs, column < columns), centred, T.Cast(total, 0))

    def weight_at(task: Expr, v: Expr, k: Expr, lane: Expr) -> Expr:
        return (((task * steps + k // group) * tile + v) * lanes + lane) * group + k % group

    def bias(column_sum: Expr) -> Expr:
        if not dot.quantized:
            return T.float32(0)
        return T.float32(to.zero_point) - T.Cast("float32", column_sum) * T.float32(first.zero_point * scale)

    @T.prim_func(s_tir=True)
    def kernel(
        b: T.Buffer((sets * heads * inputs * columns,), dot.activation),
        w: T.Buffer((plan.weight_elements,), dot.weight),
        c: T.Buffer((plan.constant_elements,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(sets * heads * blocks):
            for v in T.serial(tile):
                for lane in T.serial(lanes):
                    column_sum_at: T.let = on_stack(1, total)
                    column_sum = T.decl_buffer((1,), total, data=column_sum_at, scope="local")
                    column_sum[0] = T.Cast(total, 0)
                    for k in T.serial(steps * group):
                        w[weight_at(task, v, k, lane)] = T.Cast(dot.weight, value(b, task, k, start(task, v) + lane))
                        column_sum[0] = column_sum[0] + value(b, task, k, start(task, v) + lane)
                    if dot.quantized:
                        c[((task * tile + v) * parts) * lanes + lane] = T.float32(scale)
                    c[((task * tile + v) * parts + parts - 1) * lanes + lane] = bias(column_sum[0])

    return kernel
