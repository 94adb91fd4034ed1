"""Where a tile of a convolution finds its inputs, weights and constants, and where its results go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deploykit_targets.tvm.kernels.conv_plan import CACHE_LINE, ConvPlan
from deploykit_targets.tvm.kernels.expressions import Expr, vector_start
from deploykit_targets.tvm.kernels.script import T


@dataclass(frozen=True)
class Address:
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
        elif plan.flat:
            row = line * shape.height + ky * shape.dilation[0]
            pixel = row * shape.width + self._pixel(x, r) + kx * shape.dilation[1]
        else:
            (out_height, out_width), column = shape.output, self._pixel(x, r)
            if plan.joined:
                line, column = line * (plan.pixels // out_width) + column // out_width, column % out_width
            row = line // out_height * shape.height + line % out_height * shape.stride[0] + ky * shape.dilation[0]
            pixel = row * shape.width + column * shape.stride[1] + kx * shape.dilation[1]
        return pixel * shape.channels + group * (shape.channels // shape.groups)

    def _group(self, task: Expr) -> Expr:
        """Number of a group, over all weight sets."""
        plan = self.plan
        group = self._columns(task) // plan.blocks
        if plan.weight_sets == 1:
            return group
        return self._line(task) // (plan.lines // plan.weight_sets) * plan.shape.groups + group

    def _packed(self, task: Expr, v: Expr) -> tuple[Expr, Expr, Expr]:
        """Where a column vector is packed: number of the block over all groups and weight sets, tile, first lane."""
        plan, packing, block = self.plan, self.plan.packing, self._columns(task) % self.plan.blocks
        if not plan.dot.packed.columns:
            return self._group(task) * packing.blocks + block, v, 0
        by = packing.lanes // plan.dot.lanes  # divides the tile and the number of vectors
        if plan.tile < by:  # of a listed plan
            return self._group(task) * packing.blocks + block // by, 0, block % by * plan.dot.lanes
        first = vector_start(block, plan.tile // by, packing.blocks)
        return self._group(task) * packing.blocks + first + v // by, 0, v % by * plan.dot.lanes

    def weight(self, task: Expr, ky: Expr, kx: Expr, k: Expr, v: Expr) -> Expr:
        """Packed weights of one step."""
        plan, packing, (block, tile, lane) = self.plan, self.plan.packing, self._packed(task, v)
        stretch = (block * plan.shape.kernel[0] + ky) * plan.runs + kx
        step = stretch * packing.steps + k * (plan.dot.group // packing.group)
        return ((step * packing.tile + tile) * packing.lanes + lane) * packing.group

    def ahead(self, task: Expr, x: Expr, ky: Expr, kx: Expr, k: Expr, index: Expr) -> Expr:
        """What a step prefetches: a part of the weights of the block after this one, or addresses beyond the last."""
        plan, loads = self.plan, self.plan.steps // self.plan.dot.registers.read_at_once(self.plan.steps)
        number = self._line(task) % (plan.lines // plan.weight_sets) * math.ceil(plan.pixels / plan.rows) + x
        step = ((number * plan.shape.kernel[0] + ky) * plan.runs + kx) * loads + k
        block = plan.tile * plan.vector_elements
        line = index * (CACHE_LINE // np.dtype(plan.dot.weight).itemsize)
        return self.weight(task, 0, 0, 0, 0) + block + step * plan.ahead + line

    def constant(self, task: Expr, v: Expr) -> Expr:
        """First constant of a column vector; where there are more per column, each is `packing.lanes` behind."""
        packing, (block, tile, lane) = self.plan.packing, self._packed(task, v)
        return (block * packing.tile + tile) * packing.lanes * self.plan.constant_rows + lane

    def scale(self, task: Expr, v: Expr) -> Expr:
        """The scales of result `v` of a bounded plan's step."""
        return self.constant(task, v * (self.plan.packing.lanes // self.plan.dot.lanes))

    def start(self, task: Expr, r: Expr, v: Expr) -> Expr:
        """What the sums of result `v` of step `r` start from."""
        plan = self.plan
        return self.scale(task, v) + (plan.dot.sums.rows + r % plan.copies * plan.start_rows) * plan.packing.lanes

    def shift(self, task: Expr, r: Expr, v: Expr) -> Expr:
        """What is added to result `v` of step `r`."""
        plan, pair = self.plan, self.plan.dot.sums.rows
        row = pair + plan.copies * plan.start_rows + r % plan.copies * pair
        return self.scale(task, v) + row * plan.packing.lanes

    def listed_ahead(self, task: Expr, x: Expr, number: Expr) -> Expr:
        """What loop `number` of a listed plan's tile prefetches: a part of the weights of the columns after these."""
        plan, packing = self.plan, self.plan.packing
        by, spans = packing.lanes // plan.dot.lanes, math.ceil(plan.pixels / plan.rows)
        shared, more = max(1, by // plan.tile), max(1, plan.tile // by)  # blocks per packed one, packed ones per block
        part = math.ceil(plan.packed_steps * more / (shared * spans))  # of the steps
        line = (self._columns(task) % shared * spans + x) * part + number
        ahead = max(by, plan.tile) * plan.vector_elements
        return self.weight(task, 0, 0, 0, 0) + ahead + line * packing.lanes * packing.group

    def step_inputs(self, step: Expr) -> Expr:
        """Element of the list that says how far the inputs of a step are from those of the first."""
        return self.plan.constant_elements - self.plan.list_elements + step

    def listed(self, task: Expr, index: Expr) -> Expr:
        """Element of the list of a block of columns."""
        return self.step_inputs(self.plan.packed_steps) + self._columns(task) * self.plan.block_list + index

    def stored(self, x: Expr, r: Expr) -> Expr:
        """Whether a pixel of a line is one of the output."""
        if not self.plan.flat:
            return T.bool(True)
        return self._pixel(x, r) % self.plan.shape.width < self.plan.shape.output[1]

    def write(self, task: Expr, x: Expr, r: Expr, v: Expr) -> Expr:
        """First output of a column vector."""
        plan = self.plan
        packing, group, (block, tile, lane) = plan.packing, self._columns(task) // plan.blocks, self._packed(task, v)
        vector = (block - self._group(task) * packing.blocks) * packing.tile + tile
        first = T.max(0, T.min(vector * packing.lanes, plan.group_columns - packing.lanes)) + lane
        if plan.flat:
            height, width = plan.shape.output
            at = self._pixel(x, r)
            pixel = (self._line(task) * height + at // plan.shape.width) * width + at % plan.shape.width
        else:
            pixel = self._line(task) * plan.pixels + self._pixel(x, r)
        return pixel * plan.shape.columns + group * plan.group_columns + first
