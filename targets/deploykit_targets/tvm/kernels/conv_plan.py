"""How a convolution is laid out for `conv`: sizes, tile, packed weights; `conv_address` says where they are found.

NumPy and arithmetic only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from deploykit.contract.errors import UsageError
from deploykit_targets.tvm.kernels.dot import Dot, Registers
from deploykit_targets.tvm.kernels.packing import Array, Bounded, pack_constants, pack_matrix
from deploykit_targets.tvm.kernels.tiles import STEP, choose_tile, fold_rows, join_lines, tile_cycles

CACHE_LINE = 64  # bytes
_LISTED_SUMS = {1: 10}  # registers of a listed plan's tile by its vectors: both steps' weights are in registers, too
_LISTED_STEP = 2.0  # see `tiles.STEP`: what finds a step and its addresses
_MOST_LISTED_SUMS = 12  # where weights are read from memory, by the instruction that multiplies
LIST_PARTS = 4
"""Parts of the list of a block of columns (`step_list`)."""
_NEAR_BYTES = 24 << 10  # weights of a block that stay in a first-level cache from one tile of rows to the next
_SHORT_WINDOW = 16  # steps
_STAYS_BYTES = 256 << 10  # weights of fewer bytes stay in a second-level cache from one run of a model to the next


@dataclass(frozen=True)
class ConvShape:
    """Sizes of a convolution over NHWC data that is already padded.

    Args:
        batch, height, width, channels: the sizes of the input.
        columns: output channels.
        kernel, stride, dilation: (vertical, horizontal).
        groups: divides `channels` and `columns`.
    Raises:
        UsageError: groups do not divide the channels, or the kernel is larger than the input.
    """

    batch: int
    height: int
    width: int
    channels: int
    columns: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if self.channels % self.groups or self.columns % self.groups:
            raise UsageError(f"conv: {self.groups} groups do not divide {self.channels} -> {self.columns} channels")
        if min(self.output) < 1:
            raise UsageError(f"conv: kernel {self.kernel} is larger than the padded {self.height}x{self.width} input")

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        sizes = zip((self.height, self.width), self.kernel, self.stride, self.dilation, strict=True)
        height, width = ((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)
        return height, width

    @property
    def pointwise(self) -> bool:
        """Whether pixels are independent rows: 1x1, stride 1."""
        return self.kernel == (1, 1) and self.stride == (1, 1)


class Packing(NamedTuple):
    """How weights of one group lie in memory: (blocks, stretches, steps, tile, lanes, group), the last one dense."""

    blocks: int
    steps: int
    tile: int
    lanes: int
    group: int


@dataclass(frozen=True)
class ConvPlan:
    """How one convolution is laid out: what packing and kernel must agree on. Made by `plan_conv`.

    `dot` is the step that the kernel takes, which short lines may have of their own (`Dot.alone`).
    """

    shape: ConvShape
    dot: Dot
    rows: int  # pixels of a tile
    tile: int  # column vectors of a tile
    lines: int  # lines of pixels, over all images
    pixels: int  # per line
    runs: int  # stretches of contiguous inputs per row of the window
    run: int  # inputs of a stretch
    weight_sets: int = 1  # one per image where each image has weights of its own
    bounded: bool = False  # sums start from an integer bias, and are small (`packing.Bounded`)
    flat: bool = False  # a line is an image, in steps of one input pixel: those beyond the output's width are dropped
    joined: bool = False  # a line is several lines of the output, and a tile may end in another one than it starts in
    listed: bool = False  # steps are taken in the order of a list, by the weights of their columns (`step_list`)

    @property
    def group_columns(self) -> int:
        """Output channels per group."""
        return self.shape.columns // self.shape.groups

    @property
    def group_vectors(self) -> int:
        """Column vectors of a group."""
        return vectors_of(self.group_columns, self.dot)[0]

    @property
    def blocks(self) -> int:
        """Tiles that cover the columns of a group."""
        return math.ceil(self.group_vectors / self.tile)

    @property
    def packing(self) -> Packing:
        """The packing of the weights: what a kernel reads step by step, or what several instruction sets can read."""
        dot = self.dot
        if not dot.packed.columns:
            return Packing(self.blocks, self.steps, self.tile, dot.lanes, dot.group)
        beside, (vectors, by) = dot.packed.inputs or dot.group, vectors_of(self.group_columns, dot)
        return Packing(vectors // by, dot.packed_run(self.run) // beside, 1, by * dot.lanes, beside)

    @property
    def steps(self) -> int:
        """Multiply-accumulate steps per stretch."""
        return math.ceil(self.run / self.dot.group)

    @property
    def vector_elements(self) -> int:
        """Packed weights of one column vector."""
        return self.shape.kernel[0] * self.runs * self.packing.steps * self.packing.group * self.dot.lanes

    @property
    def _packed_lanes(self) -> int:
        """Lanes of all packed vectors."""
        packing = self.packing
        return self.weight_sets * self.shape.groups * packing.blocks * packing.tile * packing.lanes

    @property
    def weight_elements(self) -> int:
        """Elements of the packed weights."""
        return self._packed_lanes // self.dot.lanes * self.vector_elements

    @property
    def pixel_elements(self) -> int:
        """Input elements from a pixel of a line to the next."""
        return self.shape.channels * (1 if self.shape.pointwise or self.flat else self.shape.stride[1])

    @property
    def passes(self) -> int:
        """Tiles of rows that read the weights of a block, one after another."""
        return self.lines // self.weight_sets * math.ceil(self.pixels / self.rows)

    @property
    def by_line(self) -> bool:
        """Whether all columns of a line are computed before the next line, so that a thread's share is a part of the
        image, as in the layers before and after. Else all lines of a block of columns, whose weights are read once.
        Weights beyond the cache are worth reading again where the inputs are more, and would change their core.
        """
        weights = self.weight_elements * np.dtype(self.dot.weight).itemsize
        inputs = self.input_elements * np.dtype(self.dot.activation).itemsize
        return weights < _STAYS_BYTES or (weights < 4 * _STAYS_BYTES and 2 * weights < inputs)

    @property
    def ahead(self) -> int:
        """Weights of the next block that each step's loads bring closer, so that all are there after this block."""
        steps = self.dot.registers.read_at_once(self.steps)
        return math.ceil(steps * self.tile * self.dot.lanes * self.dot.group / self.passes)

    @property
    def prefetches(self) -> int:
        """Cache lines that a step asks for; none where the weights stay in a cache.

        None for one row either, which reads as fast as it multiplies: few streams that the CPU fetches ahead by itself
        are faster there (256 -> 1024 in int8 on Zen 4: 4.7 us -> 2.6 with four streams instead of thirteen).
        """
        alone = self.rows == 1 and self.dot.fills_lines and not self.dot.registers.parted
        return 0 if self.by_line or alone else math.ceil(self.ahead * np.dtype(self.dot.weight).itemsize / CACHE_LINE)

    @property
    def copies(self) -> int:
        """How often starts and shifts of a bounded plan are packed.

        Each step of a tile loads its own where windows are short: a register that several start from would be copied
        by the units that multiply, for as long as some of the products take.
        """
        window = self.shape.kernel[0] * self.runs * self.steps
        return self.rows // self.dot.sums.rows if window <= _SHORT_WINDOW else 1

    @property
    def start_rows(self) -> int:
        """Constants of each column that a step's sums start from: as many as it has sums for each column."""
        return self.dot.accumulators // self.dot.lanes

    @property
    def constant_rows(self) -> int:
        """Constants of each column: scale, starts and shifts; or scale and bias, or bias alone."""
        if self.bounded:
            return self.dot.sums.rows + self.copies * (self.start_rows + self.dot.sums.rows)
        return 2 if self.dot.quantized else 1

    @property
    def results(self) -> tuple[int, int]:
        """Columns that are finished at once, and how many of these a tile has."""
        lanes = self.packing.lanes if self.bounded else self.dot.lanes
        return lanes, self.tile * self.dot.lanes // lanes

    @property
    def window_steps(self) -> int:
        """Steps of a tile, over its whole window."""
        return self.shape.kernel[0] * self.runs * self.steps

    @property
    def packed_steps(self) -> int:
        """Steps of packed weights, over a whole window, with those that only fill a stretch."""
        return self.shape.kernel[0] * self.runs * self.packing.steps

    @property
    def list_elements(self) -> int:
        """Elements of a listed plan's last constants; see `step_list`."""
        return self.packed_steps + self.shape.groups * self.blocks * self.block_list if self.listed else 0

    @property
    def block_list(self) -> int:
        """Elements of the list of a block of columns."""
        return self.tile * self.dot.lanes + LIST_PARTS + self.window_steps

    @property
    def constant_elements(self) -> int:
        """Elements of the packed constants."""
        return self._packed_lanes * self.constant_rows + self.list_elements

    @property
    def input_elements(self) -> int:
        """Elements of the input buffer: the tensor, and some more of any value, unused or met by zero weights."""
        shape, steps = self.shape, self.steps
        unused = self.dot.registers.loaded_at_once(steps) - self.dot.registers.read_at_once(steps)
        slack = (steps + unused) * self.dot.group - self.run
        return shape.batch * shape.height * shape.width * shape.channels + slack

    @property
    def output_elements(self) -> int:
        """Elements of the output buffer."""
        return self.shape.batch * math.prod(self.shape.output) * self.shape.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer as defined, without those that padding adds."""
        return self.output_elements * math.prod(self.shape.kernel) * self.shape.channels // self.shape.groups


def plan_conv(
    shape: ConvShape, dot: Dot, *, weights_per_image: bool = False, bounded: bool = False, listed: int = 0
) -> ConvPlan:
    """Choose the tile, and how much of the window is contiguous in memory.

    Args:
        weights_per_image: each image has packed weights of its own, one set after another (`matmul`).
        bounded: whether the sums are small (`packing.fold_bounded`); the plan is bounded where its step can use that.
        listed: take steps in the order of a list, with so many vectors of columns in a tile (one, or as many as lie
            beside each other in packed weights, or several times as many); of a step that has `pairs`.
    """
    height, width = shape.output
    lines, pixels = shape.batch * height, width
    contiguous = shape.groups == 1 and shape.dilation[1] == 1
    runs = 1 if contiguous else shape.kernel[1]
    run = shape.channels // shape.groups * (shape.kernel[1] if contiguous else 1)
    dot = dot.for_inputs(run)
    vectors, by = vectors_of(shape.columns // shape.groups, dot)
    step = STEP
    if listed:
        vectors, by, step = listed, listed, _LISTED_STEP
    if shape.pointwise:
        apart = shape.batch if weights_per_image else 1
        dot = dot.for_pixels(lines * pixels // apart)
        folded = _listed(dot, listed) if listed else dot
        lines, pixels = fold_rows(lines * pixels // apart, vectors, folded, by=by, step=step)
        lines *= apart
    dot = dot.for_pixels(pixels)
    sets = shape.batch if weights_per_image else 1
    held = _listed(dot, listed) if listed else dot
    rows, tile = choose_tile(pixels, vectors, held, by=by, step=step)
    bounded = bounded and dot.saturate is not None and by * dot.lanes == dot.packed.columns
    plan = ConvPlan(shape, dot, rows, tile, lines, pixels, runs, run, sets, bounded, listed=listed > 0)
    if not (dot.multiplies_matrices or shape.pointwise):
        rows, tile, lines, pixels = join_lines((lines, pixels), vectors, held, by=by, within=height, step=step)
        plan = replace(plan, rows=rows, tile=tile, lines=lines, pixels=pixels, joined=pixels > width)
    if dot.multiplies_matrices and not shape.pointwise and shape.stride == (1, 1):
        pixels = (height - 1) * shape.width + width
        rows, tile = choose_tile(pixels, vectors, dot, by=by)
        flat = replace(plan, rows=rows, tile=tile, lines=shape.batch, pixels=pixels, flat=True)
        plan = min(plan, flat, key=_tile_cycles)
    return plan


def _listed(dot: Dot, vectors: int) -> Dot:
    """What the tile of a listed plan is chosen for: only additions, of one cycle, follow one another there."""
    sums = _LISTED_SUMS.get(vectors, _MOST_LISTED_SUMS)
    return replace(dot, registers=Registers(sums + vectors + 1, pipeline=0))


def vectors_of(columns: int, dot: Dot) -> tuple[int, int]:
    """Column vectors that cover `columns`, and how many of them lie beside each other in packed weights."""
    by = dot.packed.columns // dot.lanes if columns >= dot.packed.columns > 0 else 1
    return math.ceil(columns / (by * dot.lanes)) * by, by


def _tile_cycles(plan: ConvPlan) -> float:
    """Cycles of a step over all lines and columns, where weights of a block come from where they fit."""
    weights = plan.tile * plan.vector_elements
    near = weights <= _NEAR_BYTES or (plan.lines == 1 and plan.pixels <= plan.rows)
    vectors = plan.weight_sets * plan.shape.groups * plan.group_vectors
    return plan.lines * tile_cycles(plan.pixels, vectors, plan.rows, plan.tile, near=near)


def pack_conv(plan: ConvPlan, weight: Array) -> Array:
    """Pack weights for `conv`.

    Args:
        weight: shape (columns, channels / groups, kernel height, kernel width), as PyTorch has it; int8 or float32.
    Returns:
        Flat, of the plan's weight dtype.
    Raises:
        UsageError: a weight has more bits than the instruction sums without saturating.
    """
    largest = plan.dot.largest_weight
    if plan.dot.quantized and np.abs(weight.astype(np.int32)).max(initial=0) > largest:
        raise UsageError(f"conv: {plan.dot.mnemonic} takes weights up to {largest}, and these are larger")
    split = weight.reshape(plan.shape.groups, plan.group_columns, *weight.shape[1:]).transpose(0, 1, 3, 4, 2)
    packing, lines = plan.packing, split.reshape(plan.shape.groups, plan.group_columns, -1, plan.run)
    sizes = {"lanes": packing.lanes, "group": packing.group, "tile": packing.tile, "steps": packing.steps}
    packed = [pack_matrix(w, **sizes, dtype=plan.dot.weight) for w in lines]
    return np.stack(packed).ravel()


def pack_bounded_constants(plan: ConvPlan, bounded: Bounded) -> Array:
    """Pack per-channel constants for a bounded plan: scales, starts and shifts of a vector behind each other.

    Returns:
        float32, flat; starts are the bits of int32.
    """
    start, lanes = bounded.start.view(np.float32), plan.packing.lanes
    packed = _pack_rows(plan, [bounded.scale, start, bounded.shift]).reshape(-1, 3, lanes)
    (sums, columns), finished = plan.dot.sums.started(lanes), plan.dot.sums.finished(lanes)
    starts = np.zeros((len(packed), lanes * plan.start_rows), np.float32)
    starts[:, sums] = packed[:, 1, columns]
    parts = [packed[:, 0, finished], *[starts] * plan.copies, *[packed[:, 2, finished]] * plan.copies]
    return np.concatenate(parts, axis=1).ravel()


def pack_conv_constants(plan: ConvPlan, bias: Array, scale: Array | None = None) -> Array:
    """Pack per-channel constants for `conv`.

    Args:
        bias: shape (columns,); for int8 as `packing.fold_requantization` returns it.
        scale: same, for int8 only.
    Returns:
        float32, flat.
    """
    return _pack_rows(plan, [bias] if scale is None else [scale, bias])


def _pack_rows(plan: ConvPlan, rows: list[Array]) -> Array:
    per_group = [np.split(np.asarray(row), plan.shape.groups) for row in rows]
    lanes, vectors = plan.packing.lanes, plan.packing.blocks * plan.packing.tile
    packed = [pack_constants(list(group), lanes=lanes, vectors=vectors) for group in zip(*per_group, strict=True)]
    return np.stack(packed).ravel()
