"""Kernels that compute every element by itself, over tensors of any strides: arithmetic, rounding, copies, layouts.

One generator for all: sources may be transposed, sliced or broadcast (stride 0), the target may be a part of a larger
tensor. What is computed is a function of TIR vectors. Built with TVM's builder, as the number of arguments varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder

from deploykit_targets.tvm.kernels.expressions import Expr, spread, vector_lanes, vector_start

_LANES = 16
_TASK_ELEMENTS = 4096  # less costs more to hand to a thread than to compute
_NARROW = 8  # a shorter last axis leaves most of a vector empty


@dataclass(frozen=True)
class Access:
    """How a kernel reaches an operand.

    Args:
        dtype: in memory.
        strides: elements per step of each axis; 0 repeats.
        offset: element at index zero.
    """

    dtype: str
    strides: tuple[int, ...]
    offset: int = 0

    def extent(self, sizes: Sequence[int]) -> int:
        """Elements from the buffer's start to the last one that is touched."""
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(sizes, self.strides, strict=True))


Compute = Callable[[list[Expr], int], Expr]
"""(one vector of each source, lanes) -> the vector to store."""


def mapped(sizes: Sequence[int], sources: Sequence[Access], target: Access, compute: Compute) -> Expr:
    """Generate the kernel: (sources..., target), all flat.

    Args:
        sizes: the sizes of the index space, outermost axis first, as the strides are; none is 0.
        sources, target: operands; the target's elements are distinct.
        compute: from sources to target.
    """
    operands = [target, *sources]
    axes = _merged(sizes, [operand.strides for operand in operands])
    vector = _vector_axis(axes)
    length, steps = axes.pop(vector)
    lanes = vector_lanes(length, _LANES)
    vectors, rows = math.ceil(length / lanes), math.prod(size for size, _ in axes)
    count, unit = (vectors, lanes) if rows == 1 else (rows, length)
    share = min(count, math.ceil(_TASK_ELEMENTS / unit))

    def starts(row: Expr) -> list[Expr]:
        """Element of each operand at which a row starts."""
        found = [operand.offset for operand in operands]
        for size, strides in reversed(axes):
            index = row % size
            row = row // size
            found = [start + index * stride for start, stride in zip(found, strides, strict=True)]
        return found

    def at(base: Expr, x: Expr, stride: int) -> Expr:
        start = base + vector_start(x, lanes, length) * stride
        return start if lanes == 1 or stride == 0 else builder.Ramp(start, stride, lanes)

    def write(buffers: list[Expr], row: Expr, x: Expr) -> None:
        bases = starts(row)
        loaded = [
            spread(buffer[at(base, x, stride)], lanes) if stride == 0 else buffer[at(base, x, stride)]
            for buffer, base, stride in zip(buffers[1:], bases[1:], steps[1:], strict=True)
        ]
        builder.buffer_store(buffers[0], compute(loaded, lanes), [at(bases[0], x, steps[0])])

    with IRBuilder() as frame:
        with builder.prim_func(s_tir=True):
            builder.func_name("kernel")
            arguments = [
                builder.arg(f"a{i}", builder.Buffer((source.extent(sizes),), source.dtype))
                for i, source in enumerate(sources)
            ]
            result = builder.arg("y", builder.Buffer((target.extent(sizes),), target.dtype))
            builder.func_attr({"tirx.noalias": True})
            with builder.parallel(0, math.ceil(count / share)) as task, builder.serial(0, share) as i:
                index = vector_start(task, share, count) + i
                if rows == 1:
                    write([result, *arguments], 0, index)
                else:
                    with builder.serial(0, vectors) as x:
                        write([result, *arguments], index, x)
        return frame.get()


Axis = tuple[int, tuple[int, ...]]


def _merged(sizes: Sequence[int], strides: Sequence[tuple[int, ...]]) -> list[Axis]:
    """(size, stride of each operand) of the fewest axes that reach the same elements in the same order."""
    axes: list[Axis] = []
    for axis, size in enumerate(sizes):
        steps = tuple(stride[axis] for stride in strides)
        if size == 1:
            continue
        if axes and all(outer == inner * size for outer, inner in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * size, steps)
        else:
            axes.append((size, steps))
    return axes or [(1, tuple(1 for _ in strides))]


def _vector_axis(axes: Sequence[Axis]) -> int:
    """The last axis, unless it is short and another one is read (or written) in a line, too."""
    last = len(axes) - 1
    if axes[last][0] >= _NARROW:
        return last
    lines = [i for i, (size, steps) in enumerate(axes) if size >= _NARROW and 1 in steps]
    return max(lines, default=last)
