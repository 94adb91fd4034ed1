# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""The loops of `conv` over steps in the order of a list (`step_list`): AVX2's products of bytes.

A tile of one vector of columns has many rows, and keeps the weights of a pair of steps in registers for all of them. A
tile of several has few: it keeps the inputs of a row, and the instruction that multiplies reads the weights, so that
fewer instructions take the same products. Where inputs are centred, signs and magnitudes of weights are parted first,
which is done vector by vector in either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from deploykit_targets.tvm.kernels.conv_address import Address
from deploykit_targets.tvm.kernels.conv_plan import LIST_PARTS, ConvPlan
from deploykit_targets.tvm.kernels.dot import Pairs
from deploykit_targets.tvm.kernels.expressions import Expr, fill, on_stack, prefetch
from deploykit_targets.tvm.kernels.llvm_calls import finished
from deploykit_targets.tvm.kernels.script import T

_FITS = 64  # the largest magnitude of weights any two of which fit the first two parts of a list


Products = Callable[[Expr, Expr], Expr]


def over_listed_steps(plan: ConvPlan, store_row: Expr) -> Expr:
    """Make the loops: (input, packed weights, packed constants, residual or None, output), to be inlined in a kernel.

    Args:
        plan: a listed plan.
        store_row: as `conv_matrices.over_matrices` has it.
    """
    reads, rows, tile, lanes = _Reads(plan, Address(plan)), plan.rows, plan.tile, plan.dot.lanes
    tasks, spans = plan.shape.groups * plan.blocks * plan.lines, math.ceil(plan.pixels / rows)
    bases, starts = rows if plan.joined else 1, tile * lanes
    product = reads.pairs.product
    plain_pairs, plain_steps = _stepping(reads, product, 2), _stepping(reads, product, 1)
    centred_pairs, centred_steps = (_stepping(reads, reads.centred, n, by_vector=True) for n in (2, 1))
    head = starts + LIST_PARTS

    @T.inline
    def listed(a, w, c, b, y):
        for task in T.parallel(tasks):
            first: T.let = reads.entry(c, task, starts)
            second: T.let = reads.entry(c, task, starts + 1)
            third: T.let = reads.entry(c, task, starts + 2)
            fourth: T.let = reads.entry(c, task, starts + 3)
            for x in T.serial(spans):
                acc_at: T.let = on_stack(rows * tile * lanes, plan.dot.accumulator)
                acc = T.decl_buffer((rows * tile * lanes,), plan.dot.accumulator, data=acc_at, scope="local")
                row_at: T.let = on_stack(bases, "int64")  # of each row; left in the loops, LLVM would divide there
                at = T.decl_buffer((bases,), "int64", data=row_at, scope="local")
                for r in T.unroll(bases):
                    at[r] = T.Cast("int64", reads.address.read(task, x, r, 0, 0))
                for r in T.unroll(rows):
                    for v in T.unroll(tile):
                        acc[reads.sums(r, v)] = reads.start(c, task, v)
                plain_pairs(a, w, c, acc, at, task, x, head, first)
                plain_steps(a, w, c, acc, at, task, x, head + 2 * first, second)
                if plan.dot.largest_weight > _FITS:
                    centred_pairs(a, w, c, acc, at, task, x, head + 2 * first + second, third)
                    centred_steps(a, w, c, acc, at, task, x, head + 2 * first + second + 2 * third, fourth)
                for r in T.unroll(rows):
                    for v in T.unroll(tile):
                        store_row(acc[reads.sums(r, v)], 0, task, x, r, v, c, b, y)

    return listed


@dataclass(frozen=True)
class _Reads:
    """What a step of a tile reads, as TIR expressions."""

    plan: ConvPlan
    address: Address

    @property
    def pairs(self) -> Pairs:
        """The products of bytes."""
        assert self.plan.dot.pairs is not None
        return self.plan.dot.pairs

    def sums(self, r: Expr, v: Expr) -> Expr:
        """Where the sums of a row and a vector are."""
        lanes = self.plan.dot.lanes
        return T.Ramp((r * self.plan.tile + v) * lanes, 1, lanes)

    def start(self, c: Expr, task: Expr, v: Expr) -> Expr:
        """What the sums of a vector start from."""
        lanes = self.plan.dot.lanes
        return T.reinterpret(f"int32x{lanes}", c[T.Ramp(self.address.listed(task, v * lanes), 1, lanes)])

    def entry(self, c: Expr, task: Expr, index: Expr) -> Expr:
        """An integer of the block's list."""
        return T.reinterpret("int32", c[self.address.listed(task, index)])

    def far(self, c: Expr, step: Expr) -> Expr:
        """How far the inputs of a step are; indices have 64 bits, so that addresses need no conversion."""
        if self.plan.window_steps == self.plan.steps:  # one stretch of inputs
            return T.Cast("int64", step) * T.int64(self.plan.dot.group)
        return T.Cast("int64", T.reinterpret("int32", c[self.address.step_inputs(step)]))

    def inputs(self, a: Expr, at: Expr, r: Expr, far: Expr) -> Expr:
        """The inputs of a row in a step."""
        row = at[r] if self.plan.joined else at[0] + r * self.plan.pixel_elements
        return a[T.Ramp(row + far, T.int64(1), self.plan.dot.group)]

    def weights(self, w: Expr, task: Expr, step: Expr, v: Expr) -> Expr:
        """The weights of a vector in a step."""
        packing, elements = self.plan.packing, self.plan.dot.lanes * self.plan.dot.group
        far = T.Cast("int64", step) * T.int64(packing.lanes * packing.group)
        return w[T.Ramp(T.Cast("int64", self.address.weight(task, 0, 0, 0, v)) + far, T.int64(1), elements)]

    def centred(self, x: Expr, w: Expr) -> Expr:
        """Products of centred inputs."""
        seven, first, zero = (fill(value, "int8", self.plan.dot.lanes * self.plan.dot.group) for value in (7, -128, 0))
        return self.pairs.flipped(x, T.max(w, zero - w), (w >> seven) ^ first)


def _stepping(reads: _Reads, products: Products, together: int, *, by_vector: bool = False) -> Expr:
    """A loop over a part of the list, of single steps or of pairs."""
    plan, address = reads.plan, reads.address
    ahead = 0 if plan.by_line else 1
    body = (_one_vector if by_vector or plan.tile == 1 else _several_vectors)(reads, products, together)

    @T.inline
    def loop(a, w, c, acc, at, task, x, first, count):
        for t in T.serial(count):
            for _ in T.unroll(ahead):
                prefetch(w, address.listed_ahead(task, x, t))
            one: T.let = reads.entry(c, task, first + t * together)
            other: T.let = reads.entry(c, task, first + t * together + (together - 1))
            from_one: T.let = reads.far(c, one)
            from_other: T.let = reads.far(c, other)
            body(a, w, acc, at, task, one, other, from_one, from_other)

    return loop


def _summing(reads: _Reads, products: Products, together: int) -> Callable[[Expr, Expr, Expr, Expr, Expr], Expr]:
    """(sums, inputs and weights of one step, those of the other) -> sums and the products of a pair, or of one step."""

    def summed(sums: Expr, x_one: Expr, by_one: Expr, x_other: Expr, by_other: Expr) -> Expr:
        total = products(x_one, by_one)
        return reads.pairs.add(sums, total + products(x_other, by_other) if together == 2 else total)

    return summed


def _one_vector(reads: _Reads, products: Products, together: int) -> Expr:
    """A pair or a step, vector after vector, whose weights stay in registers for all rows."""
    rows, tile, summed = reads.plan.rows, reads.plan.tile, _summing(reads, products, together)

    @T.inline
    def step(a, w, acc, at, task, one, other, from_one, from_other):
        for v in T.unroll(tile):
            by_one: T.let = reads.weights(w, task, one, v)
            by_other: T.let = reads.weights(w, task, other, v)
            for r in T.unroll(rows):
                acc[reads.sums(r, v)] = summed(
                    acc[reads.sums(r, v)],
                    reads.inputs(a, at, r, from_one),
                    by_one,
                    reads.inputs(a, at, r, from_other),
                    by_other,
                )
                T.evaluate(finished(acc[reads.sums(r, v)]))

    return step


def _several_vectors(reads: _Reads, products: Products, together: int) -> Expr:
    """A pair or a step, row after row, whose inputs stay in registers for all vectors."""
    rows, tile, summed = reads.plan.rows, reads.plan.tile, _summing(reads, products, together)

    @T.inline
    def step(a, w, acc, at, task, one, other, from_one, from_other):
        for r in T.unroll(rows):
            x_one: T.let = reads.inputs(a, at, r, from_one)
            x_other: T.let = reads.inputs(a, at, r, from_other)
            for v in T.unroll(tile):
                acc[reads.sums(r, v)] = summed(
                    acc[reads.sums(r, v)],
                    x_one,
                    reads.weights(w, task, one, v),
                    x_other,
                    reads.weights(w, task, other, v),
                )
                T.evaluate(finished(acc[reads.sums(r, v)]))

    return step
