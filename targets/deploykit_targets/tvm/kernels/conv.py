# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Convolution as a product of matrices: any kernel size, stride, dilation and groups; int8, bfloat16 or
float32.

The input is already padded (`pad`). A convolution of 1x1 and stride 1 is seen as one line of pixels, and so is a dense
layer. Depthwise convolutions run here, too, but `depthwise` is the kernel for them.

Rounding of int8: sums are exact in int32; `sum * scale + bias` is float32, rounded half to even, then clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16, real, stored
from deploykit_targets.tvm.kernels.conv_address import Address
from deploykit_targets.tvm.kernels.conv_bounded import bounded_ends
from deploykit_targets.tvm.kernels.conv_listed import over_listed_steps
from deploykit_targets.tvm.kernels.conv_matrices import over_matrices
from deploykit_targets.tvm.kernels.conv_plan import ConvPlan
from deploykit_targets.tvm.kernels.expressions import (
    Expr,
    cast,
    fill,
    on_stack,
    pick,
    prefetch,
    span,
)
from deploykit_targets.tvm.kernels.llvm_calls import FINISHED, with_code
from deploykit_targets.tvm.kernels.residual import Residual
from deploykit_targets.tvm.kernels.script import T


def conv(
    plan: ConvPlan,
    *,
    limits: tuple[float, float] | None = None,
    residual: Residual | None = None,
    output: str | None = None,
) -> Expr:
    """Generate the kernel: (input, packed weights, packed constants, output), all flat.

    Args:
        plan: sizes and tile.
        limits: clip the result to these (a fused activation); in units of the output, within its dtype's own.
        residual: add one more tensor, the kernel's argument before the output; `limits` clip the sum. The output may
            not share memory with it. A bounded plan needs its `through`.
        output: dtype of residual and output, the plan's activation dtype by default; "float32" stores
            `sum * scale + bias` of an int8 convolution, or the sum of a bfloat16 one, as it is. Not of a bounded plan.
    Returns:
        A TIR function. Constants are float32.
    """
    shape, dot, rows, tile = plan.shape, plan.dot, plan.rows, plan.tile
    lanes, group, steps, runs, kernel_h = dot.lanes, dot.group, plan.steps, plan.runs, shape.kernel[0]
    columns, tasks, spans = plan.group_columns, shape.groups * plan.blocks * plan.lines, math.ceil(plan.pixels / rows)
    dtype = output or dot.activation
    beside = (residual.dtype if residual is not None else None) or dtype
    address, finish, sums = Address(plan), _finish(plan, limits, residual, dtype), dot.accumulators
    wide, loaded = dot.registers.read_at_once(steps), dot.registers.loaded_at_once(steps)
    narrow, pair = columns < lanes, dot.sums.rows
    store_narrow = _store_narrow(columns, lanes, (dtype, beside), finish)
    start, store_bounded = bounded_ends(plan, limits, residual) if plan.bounded else (None, None)

    def take(a: Expr, task: Expr, x: Expr, r: Expr, ky: Expr, kx: Expr, k: Expr) -> Expr:
        """Activations of the rows of one step, one row after another."""
        count, first = loaded * group, k * (wide * group)
        parts = [a[span(address.read(task, x, r * pair + i, ky, kx) + first, count)] for i in range(pair)]
        return parts[0] if pair == 1 else T.Shuffle(parts, list(range(pair * count)))

    @T.inline
    def store(acc, c, b, y, start, first):
        """One vector of results; `b` is the residual, or None."""
        if narrow:
            store_narrow(acc, c, b, y, start, first)
        else:
            y[span(first, lanes)] = finish(acc, c, start, None if b is None else b[span(first, lanes)])

    @T.inline
    def store_row(acc, row, task, x, r, v, c, b, y):
        store(dot.row(acc, row), c, b, y, address.constant(task, v), address.write(task, x, r * pair + row, v))

    @T.inline
    def add(a, w, acc, task, x, r, v, ky, kx, k, j):
        acc[T.Ramp((r * tile + v) * sums, 1, sums)] = dot.step(
            acc[T.Ramp((r * tile + v) * sums, 1, sums)],
            pick(take(a, task, x, r, ky, kx, k), j, loaded),
            w[T.Ramp(address.weight(task, ky, kx, k * wide + j, v), 1, lanes * group)],
        )

    @T.inline
    def tiles(a, w, c, b, y):  # noqa: PLR0912 -- the loops of a kernel
        for task in T.parallel(tasks):
            for x in T.serial(spans):
                acc_at: T.let = on_stack(rows // pair * tile * sums, dot.accumulator)
                acc = T.decl_buffer((rows // pair * tile * sums,), dot.accumulator, data=acc_at, scope="local")
                if plan.bounded:
                    start(acc, c, task)
                else:
                    for i in T.unroll(rows // pair * tile):
                        acc[T.Ramp(i * sums, 1, sums)] = fill(0, dot.accumulator, sums)
                for ky in T.serial(kernel_h):
                    for kx in T.serial(runs):
                        for k in T.serial(steps // wide):
                            for ahead in T.unroll(plan.prefetches):
                                prefetch(w, address.ahead(task, x, ky, kx, k, ahead))
                            for j in T.unroll(wide):
                                for i in T.unroll(rows // pair * tile):
                                    add(a, w, acc, task, x, *_step_of(plan, i), ky, kx, k, j)
                if plan.bounded:
                    store_bounded(acc, c, b, y, task, x)
                else:
                    for r in T.unroll(rows // pair):
                        for v in T.unroll(tile):
                            store_row(acc[T.Ramp((r * tile + v) * sums, 1, sums)], 0, task, x, r, v, c, b, y)
                            if pair == 2:
                                store_row(acc[T.Ramp((r * tile + v) * sums, 1, sums)], 1, task, x, r, v, c, b, y)

    body = _loops(plan, store_row, tiles)
    code = FINISHED if plan.listed else dot.code
    if residual is None:

        @T.prim_func(s_tir=True)
        def kernel(
            a: T.Buffer((plan.input_elements,), dot.activation),
            w: T.Buffer((plan.weight_elements,), dot.weight),
            c: T.Buffer((plan.constant_elements,), "float32"),
            y: T.Buffer((plan.output_elements,), dtype),
        ):
            T.func_attr({"tirx.noalias": True})
            body(a, w, c, None, y)

        return with_code(kernel, code)

    @T.prim_func(s_tir=True)
    def adding(
        a: T.Buffer((plan.input_elements,), dot.activation),
        w: T.Buffer((plan.weight_elements,), dot.weight),
        c: T.Buffer((plan.constant_elements,), "float32"),
        b: T.Buffer((plan.output_elements,), beside),
        y: T.Buffer((plan.output_elements,), dtype),
    ):
        T.func_attr({"tirx.noalias": True})
        body(a, w, c, b, y)

    return with_code(adding, code)


def _loops(plan: ConvPlan, store_row: Expr, tiles: Expr) -> Expr:
    """The loops of a plan; `tiles` are those over its steps in the order of memory."""
    if plan.dot.multiplies_matrices:
        return over_matrices(plan, store_row)
    return over_listed_steps(plan, store_row) if plan.listed else tiles


def _store_narrow(columns: int, lanes: int, dtypes: tuple[str, str], finish: Expr) -> Expr:
    """What stores the columns of a vector that is wider than a group has; dtypes of output and residual."""
    dtype, beside = dtypes

    @T.inline
    def store(acc, c, b, y, start, first):
        out_at: T.let = on_stack(lanes, dtype)
        out = T.decl_buffer((lanes,), dtype, data=out_at, scope="local")
        other_at: T.let = on_stack(lanes, beside)
        other = T.decl_buffer((lanes,), beside, data=other_at, scope="local")
        if b is not None:
            for i in T.serial(columns):
                other[i] = b[first + i]
        out[span(0, lanes)] = finish(acc, c, start, other[span(0, lanes)])
        for i in T.serial(columns):
            y[first + i] = out[i]

    return store


def _step_of(plan: ConvPlan, i: Expr) -> tuple[Expr, Expr]:
    """Row and vector of a tile's step `i`: row after row, or vector after vector where weights fill more registers."""
    high = plan.rows // plan.dot.sums.rows
    return (i // plan.tile, i % plan.tile) if plan.dot.sums.rows == 1 else (i % high, i // high)


def _finish(
    plan: ConvPlan, limits: tuple[float, float] | None, residual: Residual | None, dtype: str
) -> Callable[[Expr, Expr, Expr, Expr | None], Expr]:
    """From accumulators to outputs: (accumulator, constants, first constant of the vector, residual) -> to store."""
    dot, lanes, apart = plan.dot, plan.dot.lanes, plan.packing.lanes

    def finish(acc: Expr, c: Expr, start: Expr, other: Expr | None) -> Expr:
        if dot.quantized:
            value = cast(acc, "float32", lanes) * c[T.Ramp(start, 1, lanes)] + c[T.Ramp(start + apart, 1, lanes)]
        else:
            value = acc + c[T.Ramp(start, 1, lanes)]
        if residual is not None:
            whole = dtype in ("float32", BFLOAT16)
            value = value + real(other, residual.dtype or dtype, lanes) if whole else residual.sum(value, other, dot)
        return stored(value, limits, dtype, lanes)

    return finish
