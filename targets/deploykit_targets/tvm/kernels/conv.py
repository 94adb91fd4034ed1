# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Convolution as a product of matrices: any kernel size, stride, dilation and groups; int8 or float32.

The input is already padded (`pad`). A convolution of 1x1 and stride 1 is seen as one line of pixels, and so is a dense
layer. Depthwise convolutions run here, too, but `depthwise` is the kernel for them.

Rounding of int8: sums are exact in int32; `sum * scale + bias` is float32, rounded half to even, then clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from deploykit.errors import UsageError
from deploykit_targets.tvm.kernels import amx
from deploykit_targets.tvm.kernels.expressions import (
    UNSCALED,
    Affine,
    Expr,
    cast,
    clip,
    fill,
    limits_of,
    on_stack,
    pick,
    prefetch,
    quantized,
    rounded,
    span,
    vector_start,
    widen,
)
from deploykit_targets.tvm.kernels.isa import Dot
from deploykit_targets.tvm.kernels.packing import Array, pack_constants, pack_matrix
from deploykit_targets.tvm.kernels.tiles import TILE_ROWS, choose_tile, fold_rows

_CACHE_LINE = 64  # bytes
_STAYS_BYTES = 256 << 10  # weights of fewer bytes stay in a second-level cache from one run of a model to the next


@dataclass(frozen=True)
class ConvShape:
    """Sizes of a convolution over NHWC data that is already padded.

    Args:
        batch, height, width, channels: of the input.
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

    @property
    def group_columns(self) -> int:
        """Output channels per group."""
        return self.shape.columns // self.shape.groups

    @property
    def blocks(self) -> int:
        """Tiles that cover the columns of a group."""
        return math.ceil(math.ceil(self.group_columns / self.dot.lanes) / self.tile)

    @property
    def steps(self) -> int:
        """Multiply-accumulate steps per stretch."""
        return math.ceil(self.run / self.dot.group)

    @property
    def vectors(self) -> int:
        """Column vectors over all groups and weight sets."""
        return self.weight_sets * self.shape.groups * self.blocks * self.tile

    @property
    def weight_elements(self) -> int:
        """Elements of the packed weights."""
        window = self.shape.kernel[0] * self.runs * self.steps
        return self.vectors * window * self.dot.lanes * self.dot.group

    @property
    def pixel_elements(self) -> int:
        """Input elements from a pixel of a line to the next."""
        return self.shape.channels * (1 if self.shape.pointwise else self.shape.stride[1])

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
        return math.ceil(self.dot.read_at_once(self.steps) * self.tile * self.dot.lanes * self.dot.group / self.passes)

    @property
    def prefetches(self) -> int:
        """Cache lines that a step asks for; none where the weights stay in a cache."""
        return 0 if self.by_line else math.ceil(self.ahead * np.dtype(self.dot.weight).itemsize / _CACHE_LINE)

    @property
    def constant_elements(self) -> int:
        """Elements of the packed constants: scale and bias of each column, or bias alone."""
        return self.vectors * (2 if self.dot.quantized else 1) * self.dot.lanes

    @property
    def input_elements(self) -> int:
        """Elements of the input buffer: the tensor, and up to group - 1 more of any value, met by zero weights."""
        shape = self.shape
        slack = self.steps * self.dot.group - self.run
        return shape.batch * shape.height * shape.width * shape.channels + slack

    @property
    def output_elements(self) -> int:
        """Elements of the output buffer."""
        return self.shape.batch * math.prod(self.shape.output) * self.shape.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer as defined, without those that padding adds."""
        return self.output_elements * math.prod(self.shape.kernel) * self.shape.channels // self.shape.groups


def plan_conv(shape: ConvShape, dot: Dot, *, weights_per_image: bool = False) -> ConvPlan:
    """Choose the tile, and how much of the window is contiguous in memory.

    Args:
        weights_per_image: each image has packed weights of its own, one set after another (`matmul`).
    """
    height, width = shape.output
    lines, pixels = shape.batch * height, width
    vectors = math.ceil(shape.columns // shape.groups / dot.lanes)
    contiguous = shape.groups == 1 and shape.dilation[1] == 1
    runs = 1 if contiguous else shape.kernel[1]
    run = shape.channels // shape.groups * (shape.kernel[1] if contiguous else 1)
    dot = dot.for_inputs(run)
    if shape.pointwise:
        apart = shape.batch if weights_per_image else 1
        dot = dot.for_pixels(lines * pixels // apart)
        lines, pixels = fold_rows(lines * pixels // apart, vectors, dot)
        lines *= apart
    dot = dot.for_pixels(pixels)
    rows, tile = choose_tile(pixels, vectors, dot)
    return ConvPlan(shape, dot, rows, tile, lines, pixels, runs, run, shape.batch if weights_per_image else 1)


def pack_conv(plan: ConvPlan, weight: Array) -> Array:
    """Pack weights for `conv`.

    Args:
        weight: shape (columns, channels / groups, kernel height, kernel width), as PyTorch has it; int8 or float32.
    Returns:
        Flat, of the plan's weight dtype.
    """
    split = weight.reshape(plan.shape.groups, plan.group_columns, *weight.shape[1:]).transpose(0, 1, 3, 4, 2)
    dot = plan.dot
    lines = split.reshape(plan.shape.groups, plan.group_columns, -1, plan.run)
    order = {"lanes": dot.lanes, "group": dot.group, "tile": plan.tile, "interleaved": dot.interleaved}
    packed = [pack_matrix(w, dtype=dot.weight, **order) for w in lines]
    return np.stack(packed).ravel()


def pack_conv_constants(plan: ConvPlan, bias: Array, scale: Array | None = None) -> Array:
    """Pack per-channel constants for `conv`.

    Args:
        bias: shape (columns,); for int8 as `packing.fold_requantization` returns it.
        scale: same, for int8 only.
    Returns:
        float32, flat.
    """
    rows = [bias] if scale is None else [scale, bias]
    per_group = [np.split(np.asarray(row), plan.shape.groups) for row in rows]
    vectors = plan.blocks * plan.tile
    packed = [
        pack_constants(list(group), lanes=plan.dot.lanes, vectors=vectors) for group in zip(*per_group, strict=True)
    ]
    return np.stack(packed).ravel()


@dataclass(frozen=True)
class Residual:
    """A tensor of the output's shape that is added to a convolution's result before it is clipped and stored.

    Args:
        other: quantization of that tensor; unused where the output is float32, as the following are.
        to: of the sum.
        through: of the convolution's own result, where that is rounded before it is added, as the graph has it; then
            the constants lead to this scale and zero point. Without it they lead to those of `to`.
        through_limits: clip the convolution's own result to these, in quantized units of `through`.
    """

    other: Affine = UNSCALED
    to: Affine = UNSCALED
    through: Affine | None = None
    through_limits: tuple[float, float] | None = None

    def sum(self, value: Expr, other: Expr, dot: Dot) -> Expr:
        """The sum in units of `to`, not yet clipped.

        Args:
            value: float32, the convolution's result as the constants scale it.
            other: as stored, eight bits.
        """
        lanes, offset = dot.lanes, -self.other.zero_point * self.other.scale / self.to.scale
        if self.through is not None:
            limits, ratio = self.through_limits or limits_of(dot.activation), self.through.scale / self.to.scale
            value = rounded(value, limits, lanes) * fill(ratio, "float32", lanes)
            offset += self.to.zero_point - self.through.zero_point * ratio
        scaled = widen(other, lanes) * fill(self.other.scale / self.to.scale, "float32", lanes)
        return value + (scaled + fill(offset, "float32", lanes))


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
            not share memory with it.
        output: dtype of residual and output, the plan's activation dtype by default; "float32" stores
            `sum * scale + bias` of an int8 convolution as it is.
    Returns:
        A TIR function. Constants are float32.
    """
    shape, dot, rows, tile = plan.shape, plan.dot, plan.rows, plan.tile
    lanes, group, steps, runs, kernel_h = dot.lanes, dot.group, plan.steps, plan.runs, shape.kernel[0]
    columns, tasks, spans = plan.group_columns, shape.groups * plan.blocks * plan.lines, math.ceil(plan.pixels / rows)
    dtype = output or dot.activation
    address, finish = _Address(plan), _finish(dot, limits, residual, dtype)
    constants, sums = (2 if dot.quantized else 1) * lanes, dot.pair * lanes
    narrow, wide, pair = columns < lanes, dot.read_at_once(steps), dot.pair

    def read(b: Expr | None, index: Expr) -> Expr | None:
        return None if b is None else b[index]

    def take(a: Expr, task: Expr, x: Expr, r: Expr, ky: Expr, kx: Expr, k: Expr) -> Expr:
        """Activations of the rows of one step, one row after another."""
        count = wide * group
        parts = [a[span(address.read(task, x, r * pair + i, ky, kx) + k * count, count)] for i in range(pair)]
        return parts[0] if pair == 1 else T.Shuffle(parts, list(range(pair * count)))

    @T.inline
    def store(acc, c, b, y, start, first):
        """One vector of results; `b` is the residual, or None."""
        if narrow:
            out_at: T.let = on_stack(lanes, dtype)
            out = T.decl_buffer((lanes,), dtype, data=out_at, scope="local")
            if b is not None:
                for i in T.serial(columns):
                    out[i] = b[first + i]
            out[span(0, lanes)] = finish(acc, c, start, out[span(0, lanes)])
            for i in T.serial(columns):
                y[first + i] = out[i]
        else:
            y[span(first, lanes)] = finish(acc, c, start, read(b, span(first, lanes)))

    @T.inline
    def store_row(acc, row, task, x, r, v, c, b, y):
        store(
            dot.row(acc, row), c, b, y, address.vector(task, v) * constants, address.write(task, x, r * pair + row, v)
        )

    @T.inline
    def tiles(a, w, c, b, y):  # noqa: PLR0912 -- the loops of a kernel
        for task in T.parallel(tasks):
            for x in T.serial(spans):
                acc_at: T.let = on_stack(rows * tile * lanes, dot.accumulator)
                acc = T.decl_buffer((rows * tile * lanes,), dot.accumulator, data=acc_at, scope="local")
                for i in T.unroll(rows // pair * tile):
                    acc[T.Ramp(i * sums, 1, sums)] = fill(0, dot.accumulator, sums)
                for ky in T.serial(kernel_h):
                    for kx in T.serial(runs):
                        for k in T.serial(steps // wide):
                            for ahead in T.unroll(plan.prefetches):
                                prefetch(w, address.ahead(task, x, ky, kx, k, ahead))
                            for j in T.unroll(wide):
                                for r in T.unroll(rows // pair):
                                    for v in T.unroll(tile):
                                        acc[T.Ramp((r * tile + v) * sums, 1, sums)] = dot.step(
                                            acc[T.Ramp((r * tile + v) * sums, 1, sums)],
                                            pick(take(a, task, x, r, ky, kx, k), j, wide),
                                            w[T.Ramp(address.weight(task, ky, kx, k * wide + j, v), 1, lanes * group)],
                                        )
                for r in T.unroll(rows // pair):
                    for v in T.unroll(tile):
                        store_row(acc[T.Ramp((r * tile + v) * sums, 1, sums)], 0, task, x, r, v, c, b, y)
                        if pair == 2:
                            store_row(acc[T.Ramp((r * tile + v) * sums, 1, sums)], 1, task, x, r, v, c, b, y)

    high = math.ceil(rows / TILE_ROWS)  # matrices of a tile above each other: one register of activations each
    rows_of = [min(TILE_ROWS, rows - TILE_ROWS * r) for r in range(high)]
    shapes = amx.configuration(
        [n for n in rows_of for _ in range(tile)] + rows_of + [TILE_ROWS] * tile if dot.tiles else []
    )
    first_a, first_w = high * tile, high * tile + high

    @T.inline
    def matrices(a, w, c, b, y):
        """The loops of `tiles` where a step multiplies matrices, which meet vectors in memory only."""
        for task in T.parallel(tasks):
            shapes_at: T.let = on_stack(amx.CONFIGURATION_WORDS, "int64")
            block = T.decl_buffer((amx.CONFIGURATION_WORDS,), "int64", data=shapes_at, scope="local")
            block[0] = shapes[0]
            block[1] = shapes[1]
            block[2] = shapes[2]
            block[3] = shapes[3]
            block[4] = shapes[4]
            block[5] = shapes[5]
            block[6] = shapes[6]
            block[7] = shapes[7]
            T.evaluate(amx.configure(block))
            for x in T.serial(spans):
                acc_at: T.let = on_stack(rows * tile * lanes, dot.accumulator)
                acc = T.decl_buffer((rows * tile * lanes,), dot.accumulator, data=acc_at, scope="local")
                for i in T.unroll(high * tile):
                    T.evaluate(amx.zero(i))
                for ky in T.serial(kernel_h):
                    for kx in T.serial(runs):
                        for k in T.serial(steps):
                            for ahead in T.unroll(plan.prefetches):
                                prefetch(w, address.ahead(task, x, ky, kx, k, ahead))
                            for v in T.unroll(tile):
                                T.evaluate(amx.load(first_w + v, w, address.weight(task, ky, kx, k, v), amx.ROW_BYTES))
                            for r in T.unroll(high):
                                T.evaluate(
                                    amx.load(
                                        first_a + r,
                                        a,
                                        address.read(task, x, r * TILE_ROWS, ky, kx) + k * group,
                                        plan.pixel_elements,
                                    )
                                )
                                for v in T.unroll(tile):
                                    T.evaluate(amx.multiply(r * tile + v, first_a + r, first_w + v))
                for r in T.unroll(high):
                    for v in T.unroll(tile):
                        T.evaluate(
                            amx.store(r * tile + v, acc, (r * TILE_ROWS * tile + v) * lanes, tile * amx.ROW_BYTES)
                        )
                for r in T.serial(rows):
                    for v in T.unroll(tile):
                        store_row(acc[T.Ramp((r * tile + v) * lanes, 1, lanes)], 0, task, x, r, v, c, b, y)
            T.evaluate(amx.release())

    body = matrices if dot.tiles else tiles
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

        return kernel

    @T.prim_func(s_tir=True)
    def adding(
        a: T.Buffer((plan.input_elements,), dot.activation),
        w: T.Buffer((plan.weight_elements,), dot.weight),
        c: T.Buffer((plan.constant_elements,), "float32"),
        b: T.Buffer((plan.output_elements,), dtype),
        y: T.Buffer((plan.output_elements,), dtype),
    ):
        T.func_attr({"tirx.noalias": True})
        body(a, w, c, b, y)

    return adding


@dataclass(frozen=True)
class _Address:
    """Where a tile finds its data, as TIR expressions. A task is (group, block of columns) and line of pixels."""

    plan: ConvPlan

    def _line(self, task: Expr) -> Expr:
        """Line of pixels, over all images."""
        plan = self.plan
        return task // (plan.shape.groups * plan.blocks) if plan.by_line else task % plan.lines

    def _columns(self, task: Expr) -> Expr:
        """Number of a block of columns, over all groups."""
        plan = self.plan
        return task % (plan.shape.groups * plan.blocks) if plan.by_line else task // plan.lines

    def _pixel(self, x: Expr, r: Expr) -> Expr:
        """Pixel of a line; the last tile overlaps the one before."""
        return vector_start(x, self.plan.rows, self.plan.pixels) + r

    def read(self, task: Expr, x: Expr, r: Expr, ky: Expr, kx: Expr) -> Expr:
        """First input of a stretch."""
        plan, shape = self.plan, self.plan.shape
        line, group = self._line(task), self._columns(task) // plan.blocks
        if shape.pointwise:
            pixel = line * plan.pixels + self._pixel(x, r)
        else:
            out_height = shape.output[0]
            row = line // out_height * shape.height + line % out_height * shape.stride[0] + ky * shape.dilation[0]
            pixel = row * shape.width + self._pixel(x, r) * shape.stride[1] + kx * shape.dilation[1]
        return pixel * shape.channels + group * (shape.channels // shape.groups)

    def _block(self, task: Expr) -> Expr:
        """Number of a block of columns, over all groups and weight sets."""
        plan = self.plan
        block = self._columns(task)
        if plan.weight_sets == 1:
            return block
        return self._line(task) // (plan.lines // plan.weight_sets) * (plan.shape.groups * plan.blocks) + block

    def weight(self, task: Expr, ky: Expr, kx: Expr, k: Expr, v: Expr) -> Expr:
        """Packed weights of one step."""
        plan = self.plan
        stretch = (self._block(task) * plan.shape.kernel[0] + ky) * plan.runs + kx
        return ((stretch * plan.steps + k) * plan.tile + v) * (plan.dot.lanes * plan.dot.group)

    def ahead(self, task: Expr, x: Expr, ky: Expr, kx: Expr, k: Expr, index: Expr) -> Expr:
        """What a step prefetches: a part of the weights of the block after this one, or addresses beyond the last."""
        plan, loads = self.plan, self.plan.steps // self.plan.dot.read_at_once(self.plan.steps)
        number = self._line(task) % (plan.lines // plan.weight_sets) * math.ceil(plan.pixels / plan.rows) + x
        step = ((number * plan.shape.kernel[0] + ky) * plan.runs + kx) * loads + k
        block = plan.weight_elements // plan.vectors * plan.tile
        line = index * (_CACHE_LINE // np.dtype(plan.dot.weight).itemsize)
        return self.weight(task, 0, 0, 0, 0) + block + step * plan.ahead + line

    def vector(self, task: Expr, v: Expr) -> Expr:
        """Number of a column vector, over all groups and weight sets."""
        return self._block(task) * self.plan.tile + v

    def write(self, task: Expr, x: Expr, r: Expr, v: Expr) -> Expr:
        """First output of a column vector."""
        plan = self.plan
        group, block = self._columns(task) // plan.blocks, self._columns(task) % plan.blocks
        first = T.max(0, T.min((block * plan.tile + v) * plan.dot.lanes, plan.group_columns - plan.dot.lanes))
        pixel = self._line(task) * plan.pixels + self._pixel(x, r)
        return pixel * plan.shape.columns + group * plan.group_columns + first


def _finish(
    dot: Dot, limits: tuple[float, float] | None, residual: Residual | None, dtype: str
) -> Callable[[Expr, Expr, Expr, Expr | None], Expr]:
    """From accumulators to outputs: (accumulator, constants, first constant of the vector, residual) -> to store."""
    lanes = dot.lanes

    def finish(acc: Expr, c: Expr, start: Expr, other: Expr | None) -> Expr:
        if dot.quantized:
            value = cast(acc, "float32", lanes) * c[T.Ramp(start, 1, lanes)] + c[T.Ramp(start + lanes, 1, lanes)]
        else:
            value = acc + c[T.Ramp(start, 1, lanes)]
        if residual is not None:
            value = value + other if dtype == "float32" else residual.sum(value, other, dot)
        if dtype != "float32":
            return quantized(value, limits or limits_of(dtype), dtype, lanes)
        return value if limits is None else clip(value, limits, "float32", lanes)

    return finish
