# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""The loops of `conv` over steps in the order of a list: AVX2's products of bytes for the steps whose weights allow it.

`vpmaddubsw` adds two products of a byte without a sign and one with in 16 bits, and saturates beyond. It cannot where
of the two weights the positive ones add up to 128 at most, and the negative ones to -128 at least: 255 * 128 < 2**15.
No pair of opposite signs saturates, and of others none that is small, so that most steps of eight-bit weights are exact
that way. A list per block of columns has those first, then the steps that are multiplied in 16 bits. No sum changes,
and the packed weights stay what other instruction sets read.

The list is behind the constants of a layer, as bits of int32. For each block: how many steps are narrow; then for each
step, in its order, how far its inputs and its weights are from those of the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from deploykit_targets.tvm.kernels.conv_plan import Address, ConvPlan, ConvShape, pack_conv, plan_conv
from deploykit_targets.tvm.kernels.expressions import Expr, fill, on_stack
from deploykit_targets.tvm.kernels.isa import Dot
from deploykit_targets.tvm.kernels.packing import Array
from deploykit_targets.tvm.kernels.script import T

_LARGEST_PAIR = 128  # 255 * 128 = 32640
_WORTH = 0.3  # of the steps, with which the list pays for being read


def plan_listed(shape: ConvShape, dot: Dot, weight: Array) -> ConvPlan | None:
    """Plan a convolution over a list of steps; None where too few are narrow, a tile is one row, or no step is.

    Args:
        weight: as `pack_conv` takes it, int8.
    """
    if dot.narrow is None:
        return None
    plan = plan_conv(shape, dot, listed=True)
    if not plan.listed or plan.rows == 1:  # of one row, reading the list takes as long as multiplying
        return None
    return plan if float(_narrow(plan, pack_conv(plan, weight)).mean()) >= _WORTH else None


def fits_narrow(pairs: Array) -> Array:
    """Whether pairs of weights times any bytes stay within 16 bits.

    Args:
        pairs: integers, shape (..., 2).
    Returns:
        Boolean, shape (...).
    """
    wide = pairs.astype(np.int32)
    highest, lowest = np.maximum(wide, 0).sum(axis=-1), np.minimum(wide, 0).sum(axis=-1)
    fits: Array = (highest <= _LARGEST_PAIR) & (lowest >= -_LARGEST_PAIR)
    return fits


def list_steps(plan: ConvPlan, packed: Array) -> Array:
    """The list of a layer, to stand behind its constants.

    Args:
        plan: a listed plan.
        packed: the weights, as `pack_conv` returns them.
    Returns:
        float32, shape (plan.list_elements,): the bits of int32.
    """
    places, lists = _places(plan), []
    for narrow in _narrow(plan, packed):
        lists += [[narrow.sum()], places[narrow].ravel(), places[~narrow].ravel()]
    return np.concatenate(lists).astype(np.int32).view(np.float32)


def _narrow(plan: ConvPlan, packed: Array) -> Array:
    """Which steps of each block of columns are narrow; boolean, (groups * blocks, window_steps)."""
    packing, groups = plan.packing, plan.shape.groups
    pairs = packed.reshape(groups, packing.blocks, -1, packing.steps, packing.lanes * packing.group // 2, 2)
    fits = np.all(fits_narrow(pairs), axis=-1)  # a block of the packing is one of the plan
    return np.reshape(fits[..., : plan.steps], (groups * plan.blocks, plan.window_steps))


def _places(plan: ConvPlan) -> Array:
    """How far the inputs and the weights of each step are from those of the first; (window_steps, 2)."""
    shape, packing = plan.shape, plan.packing
    rows = np.arange(shape.kernel[0]) * shape.dilation[0] * shape.width
    pixels = (rows[:, None] + np.arange(plan.runs) * shape.dilation[1]).reshape(-1, 1)
    inputs = pixels * shape.channels + np.arange(plan.steps) * plan.dot.group
    stretches = np.arange(pixels.size)[:, None] * packing.steps
    weights = (stretches + np.arange(plan.steps)) * packing.lanes * packing.group
    return np.stack([inputs.ravel(), weights.ravel()], axis=1)


def over_listed_steps(plan: ConvPlan, store_row: Expr) -> Expr:
    """Make the loops: (input, packed weights, packed constants, residual or None, output), to be inlined in a kernel.

    Args:
        plan: a listed plan.
        store_row: as `conv_matrices.over_matrices` has it.
    """
    dot, rows, tile, address = plan.dot, plan.rows, plan.tile, Address(plan)
    assert dot.narrow is not None
    tasks, spans, lanes = plan.shape.groups * plan.blocks * plan.lines, math.ceil(plan.pixels / rows), dot.lanes

    def entry(c: Expr, task: Expr, index: Expr) -> Expr:
        return T.reinterpret("int32", c[address.listed(task, index)])

    def far(first: Expr, distance: Expr, count: int) -> Expr:
        """Index of neighbours; 64 bits, which addresses need no conversion of in each step."""
        return T.Ramp(T.Cast("int64", first) + distance, T.int64(1), count)

    def stepping(step: Callable[[Expr, Expr, Expr], Expr]) -> Expr:
        @T.inline
        def loop(a, w, c, acc, at, task, first, end):
            for t in T.serial(end - first):
                inputs: T.let = T.Cast("int64", entry(c, task, 1 + 2 * (first + t)))
                weights: T.let = T.Cast("int64", entry(c, task, 2 + 2 * (first + t)))
                for i in T.unroll(rows * tile):
                    acc[T.Ramp(i * lanes, 1, lanes)] = step(
                        acc[T.Ramp(i * lanes, 1, lanes)],
                        a[far(at[i // tile], inputs, dot.group)],
                        w[far(address.weight(task, 0, 0, 0, i % tile), weights, lanes * dot.group)],
                    )

        return loop

    narrow, wide = stepping(dot.narrow.step), stepping(dot.step)

    @T.inline
    def listed(a, w, c, b, y):
        for task in T.parallel(tasks):
            count: T.let = entry(c, task, 0)
            for x in T.serial(spans):
                acc_at: T.let = on_stack(rows * tile * lanes, dot.accumulator)
                acc = T.decl_buffer((rows * tile * lanes,), dot.accumulator, data=acc_at, scope="local")
                first_at: T.let = on_stack(rows, "int64")  # of each row; left in the loops, LLVM would divide there
                first = T.decl_buffer((rows,), "int64", data=first_at, scope="local")
                for r in T.unroll(rows):
                    first[r] = T.Cast("int64", address.read(task, x, r, 0, 0))
                for i in T.unroll(rows * tile):
                    acc[T.Ramp(i * lanes, 1, lanes)] = fill(0, dot.accumulator, lanes)
                narrow(a, w, c, acc, first, task, 0, count)
                wide(a, w, c, acc, first, task, count, plan.window_steps)
                for r in T.unroll(rows):
                    for v in T.unroll(tile):
                        store_row(acc[T.Ramp((r * tile + v) * lanes, 1, lanes)], 0, task, x, r, v, c, b, y)

    return listed
