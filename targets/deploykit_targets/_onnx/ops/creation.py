"""Tensors made from nothing or from a shape: full, zeros, ones, arange, sizes, triangles."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deploykit_targets._onnx.ops.table import Call, translates


def filled(c: Call, sizes: Any, value: Any) -> str:
    """A constant where the shape is fixed, else Expand of one element."""
    shape = c.out.shape
    if all(isinstance(size, int) for size in shape) and not isinstance(value, Node):
        return c.constant(torch.full(tuple(shape), value, dtype=c.out.dtype))
    one = c.as_dtype(value, c.out.dtype)
    return c.op("Expand", one, c.shape(sizes))


@translates("aten.full.default", "aten.new_full.default")
def full(c: Call) -> str:
    """One value everywhere."""
    return filled(c, c["size"], c["fill_value"])


@translates("aten.zeros.default", "aten.new_zeros.default", "aten.ones.default", "aten.new_ones.default")
def zeros_or_ones(c: Call) -> str:
    """Zeros or ones of a given shape."""
    return filled(c, c["size"], 1 if "ones" in str(c.node.target) else 0)


@translates("aten.full_like.default", "aten.zeros_like.default", "aten.ones_like.default")
def like(c: Call) -> str:
    """One value in the shape of another tensor."""
    value = c.get("fill_value", 1 if "ones" in str(c.node.target) else 0)
    if all(isinstance(size, int) for size in c.out.shape):
        return filled(c, None, value)
    return c.op("Expand", c.as_dtype(value, c.out.dtype), c.op("Shape", c.value("self")))


@translates("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(c: Call) -> str:
    """Range; a constant when its bounds are."""
    bounds = (c.get("start", 0), c["end"], c.get("step", 1))
    if not any(isinstance(bound, Node) for bound in bounds):
        return c.constant(torch.arange(*bounds, dtype=c.out.dtype))
    start, end, step = (c.as_dtype(bound, c.out.dtype) for bound in bounds)
    return c.op("Range", start, end, step)


@translates("aten.scalar_tensor.default")
def scalar_tensor(c: Call) -> str:
    """A number as a tensor."""
    return c.as_dtype(c["s"], c.out.dtype)


@translates("aten.sym_size.int")
def size(c: Call) -> str:
    """One size, known at run time, as an int64 scalar."""
    axis = c.axis(c["dim"], c.meta("self").dim())
    sizes = c.op("Shape", c.value("self"), start=axis, end=axis + 1)
    return c.op("Squeeze", sizes, c.ints([0]))


@translates("aten.triu.default", "aten.tril.default")
def triangle(c: Call) -> str:
    """The upper or lower triangle."""
    upper = int("triu" in str(c.node.target))
    return c.op("Trilu", c.value("self"), c.writer.constant(c["diagonal"], torch.int64), upper=upper)


@translates("aten.eye.default", "aten.eye.m")
def eye(c: Call) -> str:
    """The identity matrix, a constant."""
    rows, columns = c.out.shape
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise NotImplementedError("an identity matrix of dynamic size")
    return c.constant(torch.eye(rows, columns, dtype=c.out.dtype))
