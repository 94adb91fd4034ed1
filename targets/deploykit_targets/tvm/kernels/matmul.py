# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Products of two activations, as in attention: the second is packed by a kernel of its own, then `conv.conv` runs.

Heads lie beside each other in the channels, as projections leave them: no head is moved. A dense layer, whose second
operand is constant, is a 1x1 convolution instead.

Refused: a second operand whose zero point is not the middle of its range, as each product would then need a sum over
the rows of the first one; calibrate it symmetrically.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.conv_plan import ConvPlan, ConvShape, plan_conv
from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.kernels.expressions import UNSCALED, Affine, Expr, cast, fill, fold, on_stack, span
from deploykit_targets.tvm.kernels.script import T


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
    dot, middle = plan.dot, _middle(plan.dot)
    if dot.quantized and second.zero_point != middle:
        raise UsageError(
            f"matmul: the second operand has zero point {second.zero_point}, and kernels need {middle}",
            hint="quantize it symmetrically",
        )
    operand = _Operand(plan, transposed, first.scale * second.scale / to.scale * factor, first.zero_point, to)
    packing, tile, shape = plan.packing, plan.packing.tile, plan.shape
    fills = plan.group_columns >= packing.lanes and not (transposed and plan.run % packing.group)
    body = (_by_columns(operand) if transposed else _by_rows(operand)) if fills else _by_element(operand)

    @T.prim_func(s_tir=True)
    def kernel(
        b: T.Buffer((plan.weight_sets * shape.groups * plan.run * plan.group_columns,), dot.activation),
        w: T.Buffer((plan.weight_elements,), dot.weight),
        c: T.Buffer((plan.constant_elements,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(plan.weight_sets * shape.groups * packing.blocks):
            for v in T.serial(tile):
                body(b, w, c, task, v)

    return kernel


def _middle(dot: Dot) -> int:
    return 0 if not dot.quantized or dot.activation == "int8" else 128


def _by_rows(operand: _Operand) -> Expr:
    """Loops over an operand whose columns lie beside each other: all of a vector at once."""
    dot, total, (_, steps, _, lanes, group) = operand.dot, operand.total, operand.plan.packing
    whole, rest = divmod(operand.plan.run, group)  # steps without zeros, and inputs of the one that needs some
    part = math.ceil(rest / group)

    @T.inline
    def loops(b, w, c, task, v):
        sums_at: T.let = on_stack(lanes, total)
        sums = T.decl_buffer((lanes,), total, data=sums_at, scope="local")
        sums[span(0, lanes)] = fill(0, total, lanes)
        for k in T.serial(whole):
            w[span(operand.weight_at(task, v, k * group, 0), lanes * group)] = operand.rows(b, task, v, k, group)
            sums[span(0, lanes)] = sums[span(0, lanes)] + operand.sum_of_rows(b, task, v, k, group)
        for k in T.serial(part):
            w[span(operand.weight_at(task, v, whole * group, 0), lanes * group)] = operand.rows(
                b, task, v, whole + k, rest
            )
            sums[span(0, lanes)] = sums[span(0, lanes)] + operand.sum_of_rows(b, task, v, whole + k, rest)
        for k in T.serial(steps - whole - part):
            w[span(operand.weight_at(task, v, (k + whole + part) * group, 0), lanes * group)] = fill(
                0, dot.weight, lanes * group
            )
        if dot.quantized:
            c[span(operand.constant_at(task, v, 0), lanes)] = fill(operand.scale, "float32", lanes)
        c[span(operand.constant_at(task, v, operand.parts - 1), lanes)] = operand.bias(sums[span(0, lanes)], lanes)

    return loops


def _by_columns(operand: _Operand) -> Expr:
    """Loops over an operand whose inputs lie beside each other: one column after the other; inputs fill the steps."""
    dot, total, (_, steps, _, lanes, group) = operand.dot, operand.total, operand.plan.packing
    whole = operand.plan.run // group

    @T.inline
    def loops(b, w, c, task, v):
        for lane in T.serial(lanes):
            sums_at: T.let = on_stack(group, total)
            sums = T.decl_buffer((group,), total, data=sums_at, scope="local")
            sums[span(0, group)] = fill(0, total, group)
            for k in T.serial(whole):
                w[span(operand.weight_at(task, v, k * group, lane), group)] = cast(
                    operand.column(b, task, v, k, lane), dot.weight, group
                )
                sums[span(0, group)] = sums[span(0, group)] + operand.column(b, task, v, k, lane)
            for k in T.serial(steps - whole):
                w[span(operand.weight_at(task, v, (k + whole) * group, lane), group)] = fill(0, dot.weight, group)
            if dot.quantized:
                c[operand.constant_at(task, v, 0) + lane] = T.float32(operand.scale)
            c[operand.constant_at(task, v, operand.parts - 1) + lane] = operand.bias(
                fold(sums[span(0, group)], group, operator.add)
            )

    return loops


def _by_element(operand: _Operand) -> Expr:
    """Loops over an operand of fewer columns than a vector has, or of inputs that do not fill the steps."""
    dot, total, (_, steps, _, lanes, group) = operand.dot, operand.total, operand.plan.packing

    @T.inline
    def loops(b, w, c, task, v):
        for lane in T.serial(lanes):
            sum_at: T.let = on_stack(1, total)
            column_sum = T.decl_buffer((1,), total, data=sum_at, scope="local")
            column_sum[0] = T.Cast(total, 0)
            for k in T.serial(steps * group):
                w[operand.weight_at(task, v, k, lane)] = T.Cast(dot.weight, operand.element(b, task, v, k, lane))
                column_sum[0] = column_sum[0] + operand.element(b, task, v, k, lane)
            if dot.quantized:
                c[operand.constant_at(task, v, 0) + lane] = T.float32(operand.scale)
            c[operand.constant_at(task, v, operand.parts - 1) + lane] = operand.bias(column_sum[0])

    return loops


@dataclass(frozen=True)
class _Operand:
    """The second operand and its packed form, as TIR expressions; a task is a block of columns of a head of an image.

    Args:
        scale: of the product's sums, to units of `to`.
        zero_point: of the first operand.
    """

    plan: ConvPlan
    transposed: bool
    scale: float
    zero_point: int
    to: Affine

    @property
    def dot(self) -> Dot:
        """The instruction."""
        return self.plan.dot

    @property
    def total(self) -> str:
        """Type of the sums of columns; those of floats are not used."""
        return "int32" if self.dot.quantized else self.dot.weight

    @property
    def parts(self) -> int:
        """Constants of a column."""
        return 2 if self.dot.quantized else 1

    def _start(self, task: Expr, v: Expr) -> Expr:
        """First column of a vector."""
        blocks, _, tile, lanes, _ = self.plan.packing
        return T.max(0, T.min((task % blocks * tile + v) * lanes, self.plan.group_columns - lanes))

    def _at(self, task: Expr, k: Expr, column: Expr) -> Expr:
        plan, heads = self.plan, self.plan.shape.groups
        image, head = task // plan.packing.blocks // heads, task // plan.packing.blocks % heads
        if self.transposed:
            return ((image * plan.group_columns + column) * heads + head) * plan.run + k
        return ((image * plan.run + k) * heads + head) * plan.group_columns + column

    def _centred(self, values: Expr, count: int) -> Expr:
        wide, middle = cast(values, self.total, count), _middle(self.dot)
        return wide - fill(middle, self.total, count) if self.dot.quantized else wide

    def element(self, b: Expr, task: Expr, v: Expr, k: Expr, lane: Expr) -> Expr:
        """One number, zero beyond the operand."""
        plan, column = self.plan, self._start(task, v) + lane
        within = T.And(k < plan.run, column < plan.group_columns)
        return T.if_then_else(within, self._centred(b[self._at(task, k, column)], 1), T.Cast(self.total, 0))

    def column(self, b: Expr, task: Expr, v: Expr, k: Expr, lane: Expr) -> Expr:
        """Inputs of step `k` of one column."""
        group = self.plan.packing.group
        return self._centred(b[span(self._at(task, k * group, self._start(task, v) + lane), group)], group)

    def _row(self, b: Expr, task: Expr, v: Expr, k: Expr) -> Expr:
        lanes = self.plan.packing.lanes
        return self._centred(b[span(self._at(task, k, self._start(task, v)), lanes)], lanes)

    def rows(self, b: Expr, task: Expr, v: Expr, k: Expr, count: int) -> Expr:
        """`count` inputs of step `k`, and zeros up to a step's, of every column: one column after the other."""
        _, _, _, lanes, group = self.plan.packing
        rows = [cast(self._row(b, task, v, k * group + i), self.dot.weight, lanes) for i in range(count)]
        rows += [fill(0, self.dot.weight, lanes)] * (group - count)
        order = [i * lanes + lane for lane in range(lanes) for i in range(group)]
        return rows[0] if group == 1 else T.Shuffle(rows, order)

    def sum_of_rows(self, b: Expr, task: Expr, v: Expr, k: Expr, count: int) -> Expr:
        """The sum of `count` inputs of step `k`, of every column."""
        _, _, _, lanes, group = self.plan.packing
        rows = (self._row(b, task, v, k * group + i) for i in range(count))
        return functools.reduce(operator.add, rows, fill(0, self.total, lanes))

    def weight_at(self, task: Expr, v: Expr, k: Expr, lane: Expr) -> Expr:
        """Where an input of a column is packed."""
        _, steps, tile, lanes, group = self.plan.packing
        return (((task * steps + k // group) * tile + v) * lanes + lane) * group + k % group

    def constant_at(self, task: Expr, v: Expr, part: int) -> Expr:
        """First constant of a vector."""
        _, _, tile, lanes, _ = self.plan.packing
        return ((task * tile + v) * self.parts + part) * lanes

    def bias(self, column_sum: Expr, count: int = 1) -> Expr:
        """What is added to scaled sums."""
        if not self.dot.quantized:
            return fill(0, "float32", count)
        factor = fill(self.zero_point * self.scale, "float32", count)
        return fill(self.to.zero_point, "float32", count) - cast(column_sum, "float32", count) * factor
