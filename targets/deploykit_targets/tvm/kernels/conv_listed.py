# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""The loops of `conv` over steps in the order of a list: AVX2's products of bytes, exact with weights of eight bits.

`vpmaddubsw` multiplies bytes without a sign by bytes with one, and adds two products in 16 bits. The list of a block of
columns has its steps (four inputs by eight columns) in four parts, in this order; no sum saturates in any:

1. Pairs of steps that stay within 16 bits together: they are added before `vpmaddwd` widens them to 32 bits. Whatever
   the inputs, the four weights that meet in a lane may add up to 128 where they are positive, and to -128 where they
   are negative (255 * 128 < 2**15).
2. Single steps, of whose two weights the same is true.
3. Pairs of steps whose four weights have magnitudes of 256 together at most. The magnitudes are the bytes without a
   sign, and the inputs are centred: `x - 128`, or `127 - x` where the weight is negative, which is all bits but the
   first, or the first one, inverted. That is from -128 to 127 (128 * 256 = 2**15). A constant per column, which sums
   start from, makes up for it: `sum(x * w) = sum(centred * |w|) + 128 * sum(w) + sum(|w| where w < 0)`.
4. Single steps in that way, which fits any two weights of eight bits.

Which steps are a pair is free: of hundreds most find one that they fit. Weights of seven bits need the first two parts
alone. The packed weights stay what other instruction sets read.

The list is behind the constants of a layer, as bits of int32: how far the inputs of each step are from those of the
first; then for each block a start for each of its sums, four counts (pairs or steps of each part), and the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from deploykit_targets.tvm.kernels.conv_plan import Address, ConvPlan, ConvShape, plan_conv
from deploykit_targets.tvm.kernels.expressions import Expr, fill, on_stack, prefetch
from deploykit_targets.tvm.kernels.isa import Dot
from deploykit_targets.tvm.kernels.llvm_calls import finished
from deploykit_targets.tvm.kernels.packing import Array
from deploykit_targets.tvm.kernels.script import T

LARGEST_SUM = 128  # of weights of one sign that inputs of 8 bits meet: 255 * 128 = 32640
LARGEST_MAGNITUDES = 256  # that centred inputs meet: 128 * 256 = 32768 = 2**15, which only a negative sum has
_ROUNDS = 96  # of looking for pairs


def plan_listed(shape: ConvShape, dot: Dot) -> ConvPlan | None:
    """Plan a convolution over a list of steps; None where a tile is one row, or the step adds no pairs."""
    if dot.pairs is None:
        return None
    plan = plan_conv(shape, dot, listed=True)
    return None if plan.rows == 1 else plan  # of one row, reading the list takes as long as multiplying


def signed_loads(weights: Array) -> Array:
    """What the weights of steps add to each sum of 16 bits: positive ones, and negative ones without their sign.

    Args:
        weights: integers, shape (..., sums, 2).
    Returns:
        int16, shape (..., 2 * sums).
    """
    wide = weights.astype(np.int16)
    return np.concatenate([np.maximum(wide, 0).sum(-1), -np.minimum(wide, 0).sum(-1)], axis=-1, dtype=np.int16)


def magnitudes(weights: Array) -> Array:
    """The magnitudes of the weights that meet in each sum of 16 bits.

    Args:
        weights: integers, shape (..., sums, 2).
    Returns:
        int16, shape (..., sums).
    """
    summed: Array = np.abs(weights.astype(np.int16)).sum(-1, dtype=np.int16)
    return summed


def paired(loads: Array, most: int) -> tuple[Array, Array]:
    """Pairs of steps whose loads are `most` together at most, and the steps without one.

    The heavier half of what is left is held against the lighter half, each time turned by one.

    Args:
        loads: shape (steps, sums).
    Returns:
        Numbers of steps, shapes (pairs, 2) and (rest,).
    """
    left, pairs = np.argsort(-loads.max(axis=1, initial=0) - loads.mean(axis=1) / 2, kind="stable"), []
    for turn in range(_ROUNDS):
        half = len(left) // 2
        if not half:
            break
        heavy, light, middle = left[:half], np.roll(left[-half:][::-1], turn), left[half:-half]
        fits = (loads[heavy] + loads[light] <= most).all(axis=1)
        if fits.any():
            pairs.append(np.stack([heavy[fits], light[fits]], axis=1))
            rest = np.roll(~fits, -turn)[::-1]
            left = np.concatenate([heavy[~fits], middle, left[-half:][rest]])
    return np.concatenate([np.zeros((0, 2), int), *pairs]), left


def list_steps(plan: ConvPlan, packed: Array) -> Array:
    """The list of a layer, to stand behind its constants.

    Args:
        plan: a listed plan.
        packed: the weights, as `pack_conv` returns them.
    Returns:
        float32, shape (plan.list_elements,): the bits of int32.
    """
    numbers = np.arange(plan.packed_steps).reshape(-1, plan.packing.steps)[:, : plan.steps].ravel()
    lists = [_inputs(plan)]
    for weights in _blocks(plan, packed):
        starts, counts, steps = _listed(weights[numbers])
        lists += [starts, counts, numbers[steps]]
    return np.concatenate(lists).astype(np.int32).view(np.float32)


def _listed(weights: Array) -> tuple[Array, Array, Array]:
    """Starts, counts and steps of a block.

    Args:
        weights: int8, shape (steps, columns, sums of a column, 2).
    """
    flat = weights.reshape(len(weights), -1, 2)
    loads = signed_loads(flat)
    pairs, left = paired(loads, LARGEST_SUM)
    alone = (loads[left] <= LARGEST_SUM).all(axis=1)
    single, left = left[alone], left[~alone]
    found, unpaired = paired(magnitudes(flat[left]), LARGEST_MAGNITUDES)
    centred = weights[left].astype(np.int32)
    starts = (128 * centred - np.minimum(centred, 0)).sum(axis=(0, 2, 3))
    counts = np.array([len(pairs), len(single), len(found), len(unpaired)])
    return starts, counts, np.concatenate([pairs.ravel(), single, left[found].ravel(), left[unpaired]])


def _blocks(plan: ConvPlan, packed: Array) -> Array:
    """The weights of each block of columns; int8, (groups * blocks, packed_steps, lanes, group / 2, 2)."""
    packing, groups, lanes = plan.packing, plan.shape.groups, plan.dot.lanes
    by, pairs = packing.lanes // lanes, packing.group // 2
    split = packed.reshape(groups, packing.blocks, plan.packed_steps, by, lanes, pairs, 2)
    return split.transpose(0, 1, 3, 2, 4, 5, 6).reshape(-1, plan.packed_steps, lanes, pairs, 2)


def _inputs(plan: ConvPlan) -> Array:
    """How far the inputs of each packed step are from those of the first; of those that only fill a stretch, too."""
    shape = plan.shape
    rows = np.arange(shape.kernel[0]) * shape.dilation[0] * shape.width
    pixels = (rows[:, None] + np.arange(plan.runs) * shape.dilation[1]).reshape(-1, 1)
    return (pixels * shape.channels + np.arange(plan.packing.steps) * plan.dot.group).ravel()


def over_listed_steps(plan: ConvPlan, store_row: Expr) -> Expr:
    """Make the loops: (input, packed weights, packed constants, residual or None, output), to be inlined in a kernel.

    Args:
        plan: a listed plan.
        store_row: as `conv_matrices.over_matrices` has it.
    """
    dot, rows, address = plan.dot, plan.rows, Address(plan)
    tasks, spans, lanes = plan.shape.groups * plan.blocks * plan.lines, math.ceil(plan.pixels / rows), dot.lanes
    ahead, bases = 0 if plan.by_line else 1, rows if plan.joined else 1
    assert dot.pairs is not None
    product, flipped, add = dot.pairs

    def entry(c: Expr, task: Expr, index: Expr) -> Expr:
        return T.reinterpret("int32", c[address.listed(task, index)])

    def far(c: Expr, step: Expr) -> Expr:
        """How far the inputs of a step are; indices have 64 bits, so that addresses need no conversion."""
        return T.Cast("int64", T.reinterpret("int32", c[address.step_inputs(step)]))

    def inputs(a: Expr, at: Expr, r: Expr, far: Expr) -> Expr:
        """The inputs of a row in a step."""
        row = at[r] if plan.joined else at[0] + r * plan.pixel_elements
        return a[T.Ramp(row + far, T.int64(1), dot.group)]

    def weights(w: Expr, task: Expr, step: Expr) -> Expr:
        far = T.Cast("int64", step) * T.int64(plan.packing.lanes * plan.packing.group)
        return w[T.Ramp(T.Cast("int64", address.weight(task, 0, 0, 0, 0)) + far, T.int64(1), lanes * dot.group)]

    def centred(x: Expr, w: Expr) -> Expr:
        seven, first, zero = (fill(value, "int8", lanes * dot.group) for value in (7, -128, 0))
        return flipped(x, T.max(w, zero - w), (w >> seven) ^ first)

    def stepping(products: Callable[[Expr, Expr], Expr], together: int) -> Expr:
        """A loop over a part of the list, of single steps or of pairs."""

        @T.inline
        def loop(a, w, c, acc, at, task, x, first, count):
            for t in T.serial(count):
                for _ in T.unroll(ahead):
                    prefetch(w, address.listed_ahead(task, x, t))
                one: T.let = entry(c, task, first + t * together)
                other: T.let = entry(c, task, first + t * together + (together - 1))
                by_one: T.let = weights(w, task, one)
                by_other: T.let = weights(w, task, other)
                from_one: T.let = far(c, one)
                from_other: T.let = far(c, other)
                for r in T.unroll(rows):
                    if together == 2:
                        acc[T.Ramp(r * lanes, 1, lanes)] = add(
                            acc[T.Ramp(r * lanes, 1, lanes)],
                            products(inputs(a, at, r, from_one), by_one)
                            + products(inputs(a, at, r, from_other), by_other),
                        )
                    else:
                        acc[T.Ramp(r * lanes, 1, lanes)] = add(
                            acc[T.Ramp(r * lanes, 1, lanes)], products(inputs(a, at, r, from_one), by_one)
                        )
                    T.evaluate(finished(acc[T.Ramp(r * lanes, 1, lanes)]))

        return loop

    plain_pairs, plain_steps = stepping(product, 2), stepping(product, 1)
    centred_pairs, centred_steps = stepping(centred, 2), stepping(centred, 1)
    head = lanes + 4  # starts and counts

    @T.inline
    def listed(a, w, c, b, y):
        for task in T.parallel(tasks):
            first: T.let = entry(c, task, lanes)
            second: T.let = entry(c, task, lanes + 1)
            third: T.let = entry(c, task, lanes + 2)
            fourth: T.let = entry(c, task, lanes + 3)
            for x in T.serial(spans):
                acc_at: T.let = on_stack(rows * lanes, dot.accumulator)
                acc = T.decl_buffer((rows * lanes,), dot.accumulator, data=acc_at, scope="local")
                row_at: T.let = on_stack(bases, "int64")  # of each row; left in the loops, LLVM would divide there
                at = T.decl_buffer((bases,), "int64", data=row_at, scope="local")
                for r in T.unroll(bases):
                    at[r] = T.Cast("int64", address.read(task, x, r, 0, 0))
                for r in T.unroll(rows):
                    acc[T.Ramp(r * lanes, 1, lanes)] = T.reinterpret(
                        f"int32x{lanes}", c[T.Ramp(address.listed(task, 0), 1, lanes)]
                    )
                plain_pairs(a, w, c, acc, at, task, x, head, first)
                plain_steps(a, w, c, acc, at, task, x, head + 2 * first, second)
                centred_pairs(a, w, c, acc, at, task, x, head + 2 * first + second, third)
                centred_steps(a, w, c, acc, at, task, x, head + 2 * first + second + 2 * third, fourth)
                for r in T.unroll(rows):
                    store_row(acc[T.Ramp(r * lanes, 1, lanes)], 0, task, x, r, 0, c, b, y)

    return listed
