# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""The loops of `conv` for an instruction set whose steps multiply matrices in tile registers (AMX).

Sums reach vectors through memory only, and finishing them takes as long as making them where a stretch is short. So
two buffers take turns: while the sums of a tile are made, the rows of the tile before are finished, some each step.
"""

from __future__ import annotations

import math

from deploykit_targets.tvm.kernels import amx
from deploykit_targets.tvm.kernels.conv_address import Address
from deploykit_targets.tvm.kernels.conv_plan import ConvPlan
from deploykit_targets.tvm.kernels.expressions import Expr, on_stack, prefetch, span
from deploykit_targets.tvm.kernels.script import T
from deploykit_targets.tvm.kernels.tiles import TILE_ROWS

_TURNS = 32  # of all threads together: enough for eight to end at about the same time


def over_matrices(plan: ConvPlan, store_row: Expr) -> Expr:
    """Make the loops: (input, packed weights, packed constants, residual or None, output), to be inlined in a kernel.

    Args:
        plan: the plan whose step multiplies matrices.
        store_row: what stores a row, to be inlined: (sums, row of a step, task, x, r, v, constants, residual, output).
    """
    dot, rows, tile, steps, runs = plan.dot, plan.rows, plan.tile, plan.steps, plan.runs
    lanes, kernel_h, address = dot.lanes, plan.shape.kernel[0], Address(plan)
    tasks, spans = plan.shape.groups * plan.blocks * plan.lines, math.ceil(plan.pixels / rows)
    high = math.ceil(rows / TILE_ROWS)  # matrices of a tile above each other: one register of activations each
    rows_of = [min(TILE_ROWS, rows - TILE_ROWS * r) for r in range(high)]
    shapes = [n for n in rows_of for _ in range(tile)] + rows_of + [TILE_ROWS] * tile  # rows of each register
    first_a, first_w = high * tile, high * tile + high
    share = math.ceil(tasks / _TURNS)  # tasks of a thread's turn, so that one tile is stored while the next is summed
    window = kernel_h * runs * steps
    rows_a_step = math.ceil(rows / window)
    half = rows * tile * lanes  # one of two buffers of sums

    @T.inline
    def multiply_tile(a, w, task, x, ky, kx, k):
        for ahead in T.unroll(plan.prefetches):
            prefetch(w, address.ahead(task, x, ky, kx, k, ahead))
        for v in T.unroll(tile):
            T.evaluate(amx.load(first_w + v, w, address.weight(task, ky, kx, k, v), amx.ROW_BYTES))
        for r in T.unroll(high):
            T.evaluate(
                amx.load(
                    first_a + r,
                    a,
                    address.read(task, x, r * TILE_ROWS, ky, kx) + k * dot.group,
                    plan.pixel_elements * (amx.ROW_BYTES // dot.group),
                )
            )
            for v in T.unroll(tile):
                T.evaluate(amx.multiply(dot.mnemonic, r * tile + v, first_a + r, first_w + v))

    @T.inline
    def finish_row(acc, row, q, turn, c, b, y):
        task, x = turn * share + q // spans, q % spans
        if row < rows and address.stored(x, row):
            for v in T.unroll(tile):
                first = q % 2 * half + (row * tile + v) * lanes
                store_row(acc[T.Ramp(first, 1, lanes)], 0, task, x, row, v, c, b, y)

    @T.inline
    def store_sums(acc, q):
        for r in T.unroll(high):
            for v in T.unroll(tile):
                first = q % 2 * half + (r * TILE_ROWS * tile + v) * lanes
                T.evaluate(amx.store(r * tile + v, acc, first, tile * amx.ROW_BYTES))

    @T.inline
    def one_tile(a, w, c, b, y, acc, q, count, turn):
        for i in T.unroll(high * tile):
            T.evaluate(amx.zero(i))
        for ky in T.serial(kernel_h):
            for kx in T.serial(runs):
                for k in T.serial(steps):
                    if q < count:
                        multiply_tile(a, w, turn * share + q // spans, q % spans, ky, kx, k)
                    if q > 0:
                        for i in T.serial(rows_a_step):
                            finish_row(acc, ((ky * runs + kx) * steps + k) * rows_a_step + i, q - 1, turn, c, b, y)
        if q < count:
            store_sums(acc, q)

    @T.inline
    def matrices(a, w, c, b, y):
        for turn in T.parallel(math.ceil(tasks / share)):
            shapes_at: T.let = on_stack(amx.WORDS, "int64")
            block = T.decl_buffer((amx.WORDS,), "int64", data=shapes_at, scope="local")
            block[span(0, amx.WORDS)] = amx.configuration(shapes)
            T.evaluate(amx.configure(block))
            acc_at: T.let = on_stack(2 * half, dot.accumulator)
            acc = T.decl_buffer((2 * half,), dot.accumulator, data=acc_at, scope="local")
            count: T.let = T.min(share, tasks - turn * share) * spans
            for q in T.serial(count + 1):
                one_tile(a, w, c, b, y, acc, q, count, turn)
            T.evaluate(amx.release())

    return matrices
