"""The order of a convolution's steps for AVX2's products of bytes, exact with weights of eight bits (`conv_listed`).

`vpmaddubsw` multiplies bytes without a sign by bytes with one, and adds two products in 16 bits. The list of a block of
columns has its steps (four inputs by eight columns, or by two or four times as many) in four parts, in this order; no
sum saturates in any:

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
alone, and most of their pairs are of neighbours. The packed weights stay what other instruction sets read.

The list is behind the constants of a layer, as bits of int32: how far the inputs of each step are from those of the
first; then for each block a start for each of its sums, four counts (pairs or steps of each part), and the steps.

NumPy only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from deploykit_targets.tvm.kernels.conv_plan import LIST_PARTS, ConvPlan, ConvShape, pack_conv, plan_conv, vectors_of
from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.kernels.packing import Array

LARGEST_SUM = 128  # of weights of one sign that inputs of 8 bits meet: 255 * 128 = 32640
LARGEST_MAGNITUDES = 256  # that centred inputs meet: 128 * 256 = 32768 = 2**15, which only a negative sum has
_ROUNDS = 96  # of looking for pairs
_NEAR_STEPS = 128  # among which a pair is looked for first
_MOST_BESIDE = 0.75  # of the steps that are a pair with the one beside them, where these are taken first
_VECTORS = (1, 2, 4)  # of columns, in a tile
_TOGETHER = (2, 1, 2, 1)  # steps of each part
_FIND = 2.0  # cycles that find a step
_CYCLES = {  # of each part, by the vectors of a tile: of its pair or step, for each row and vector
    1: (1.7, 1.0, 2.5, 1.4),
    2: (1.9, 1.0, 2.8, 1.5),
    4: (1.6, 0.9, 3.3, 1.7),
}
"""Measured on Zen 4, whose units for AVX2 are those of Zen 3 (3x3 of 256 channels and 768 -> 768, weights that have one
part alone, and normal ones; one thread, processor time). A row of two vectors loads for longer than it multiplies, and
centred inputs leave too few registers for several.
"""


class Listed(NamedTuple):
    """A layer whose steps are taken in the order of a list.

    Attributes:
        plan: a listed plan.
        weights: packed (`pack_conv`).
        steps: the list, to stand behind the constants; float32, shape (plan.list_elements,): the bits of int32.
    """

    plan: ConvPlan
    weights: Array
    steps: Array


def listed_layer(shape: ConvShape, dot: Dot, weight: Array) -> Listed | None:
    """Plan a convolution over a list of steps; None where a tile is one row, or the step adds no pairs.

    A tile of more columns loads inputs for more products, and fewer of its steps fit together: the weights decide
    which is the quickest.

    Args:
        weight: int8, as `pack_conv` takes it.
    """
    if dot.pairs is None:
        return None
    vectors, by = vectors_of(shape.columns // shape.groups, dot)
    plans = [plan_listed(shape, dot, count) for count in _VECTORS if count == 1 or (count <= vectors and by > 1)]
    if plans[0].rows == 1:
        return None  # of one row, reading the list takes as long as multiplying
    packed, quickest = pack_conv(plans[0], weight), None
    for plan in plans:
        listed = Listed(plan, packed, list_steps(plan, packed))
        cycles = _cycles(plan, listed.steps)
        if quickest is None or cycles < quickest[0]:
            quickest = cycles, listed
    assert quickest is not None
    return quickest[1]


def plan_listed(shape: ConvShape, dot: Dot, vectors: int) -> ConvPlan:
    """A listed plan whose tiles have so many vectors of columns."""
    return plan_conv(shape, dot, listed=vectors)


def _cycles(plan: ConvPlan, steps: Array) -> float:
    """About how many cycles all tiles take.

    Of one vector of columns, weights are loaded once for all rows; of several, inputs of a row once for all vectors,
    and weights by the instruction that multiplies. Centred inputs take the former way, vector by vector.
    """
    starts, total = plan.tile * plan.dot.lanes, 0.0
    counts = blocks_of(plan, steps)[:, starts : starts + LIST_PARTS].sum(axis=0)
    for count, together, own in zip(counts, _TOGETHER, _CYCLES[plan.tile], strict=True):
        total += float(count) * (plan.rows * plan.tile * own + together * _FIND)
    return total * plan.lines * math.ceil(plan.pixels / plan.rows)


def blocks_of(plan: ConvPlan, steps: Array) -> Array:
    """The lists of the blocks of columns: starts, counts, numbers of steps.

    Returns:
        int32, shape (blocks, plan.block_list).
    """
    return steps[plan.packed_steps :].view(np.int32).reshape(-1, plan.block_list)


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


def near_pairs(loads: Array, most: int) -> tuple[Array, Array]:
    """As `paired`, but first of steps that lie near each other, which a cache then has both of; in order.

    Where most steps are a pair with the one beside them, these are taken, and read as they lie.
    """
    numbers, found = np.arange(len(loads)), []
    fits = np.all(loads[0 : len(loads) // 2 * 2 : 2] + loads[1::2] <= most, axis=1)
    if fits.size and fits.mean() >= _MOST_BESIDE:
        first = 2 * np.flatnonzero(fits)
        found.append(np.stack([first, first + 1], axis=1))
        numbers = np.setdiff1d(numbers, found[0])
    for size in (_NEAR_STEPS, len(loads)):
        rest = []
        for start in range(0, len(numbers), size or 1):
            near = numbers[start : start + size]
            pairs, left = paired(loads[near], most)
            found.append(near[pairs])
            rest.append(np.sort(near[left]))
        numbers = np.concatenate(rest) if rest else numbers
    pairs = np.concatenate(found) if found else np.zeros((0, 2), int)
    return pairs[np.argsort(pairs.min(axis=1, initial=len(loads)), kind="stable")], numbers


def _listed(weights: Array) -> tuple[Array, Array, Array]:
    """Starts, counts and steps of a block.

    Args:
        weights: int8, shape (steps, columns, sums of a column, 2).
    """
    flat = weights.reshape(len(weights), -1, 2)
    loads = signed_loads(flat)
    pairs, left = near_pairs(loads, LARGEST_SUM)
    alone = (loads[left] <= LARGEST_SUM).all(axis=1)
    single, left = left[alone], left[~alone]
    found, unpaired = near_pairs(magnitudes(flat[left]), LARGEST_MAGNITUDES)
    centred = weights[left].astype(np.int32)
    starts = (128 * centred - np.minimum(centred, 0)).sum(axis=(0, 2, 3))
    counts = np.array([len(pairs), len(single), len(found), len(unpaired)])
    return starts, counts, np.concatenate([pairs.ravel(), single, left[found].ravel(), left[unpaired]])


def _blocks(plan: ConvPlan, packed: Array) -> Array:
    """The weights of each block of columns; int8, (groups * blocks, packed_steps, tile * lanes, group / 2, 2)."""
    packing, groups, lanes, steps = plan.packing, plan.shape.groups, plan.dot.lanes, plan.packed_steps
    by, pairs = packing.lanes // lanes, packing.group // 2
    split = packed.reshape(groups, packing.blocks, steps, by, lanes, pairs, 2).transpose(0, 1, 3, 2, 4, 5, 6)
    if plan.tile < by:
        return split.reshape(-1, steps, plan.tile * lanes, pairs, 2)
    more = plan.tile // by
    starts = [min(block * more, packing.blocks - more) for block in range(plan.blocks)]  # as `vector_start` has them
    blocks = np.stack([split[:, start : start + more] for start in starts], axis=1)
    joined = blocks.reshape(groups * plan.blocks, plan.tile, steps, lanes, pairs, 2).swapaxes(1, 2)
    return joined.reshape(-1, steps, plan.tile * lanes, pairs, 2)


def _inputs(plan: ConvPlan) -> Array:
    """How far the inputs of each packed step are from those of the first; of those that only fill a stretch, too."""
    shape = plan.shape
    rows = np.arange(shape.kernel[0]) * shape.dilation[0] * shape.width
    pixels = (rows[:, None] + np.arange(plan.runs) * shape.dilation[1]).reshape(-1, 1)
    return (pixels * shape.channels + np.arange(plan.packing.steps) * plan.dot.group).ravel()
