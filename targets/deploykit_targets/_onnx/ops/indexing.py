"""Reading and writing elements by index: embedding, gather, index, scatter, one-hot."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from deploykit_targets._onnx.ops.shaping import _LAST
from deploykit_targets._onnx.ops.table import Call, tensor_meta, translates


@translates("aten.embedding.default")
def embedding(c: Call) -> str:
    """Rows of a table."""
    return c.op("Gather", c.value("weight"), c.value("indices"), axis=0)


@translates("aten.index_select.default")
def index_select(c: Call) -> str:
    """Elements of one axis."""
    return c.op("Gather", c.value("self"), c.value("index"), axis=c.axis(c["dim"], c.meta("self").dim()))


@translates("aten.gather.default")
def gather(c: Call) -> str:
    """One element per index along an axis."""
    return c.op("GatherElements", c.value("self"), c.value("index"), axis=c.axis(c["dim"], c.meta("self").dim()))


@translates("aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default")
def scatter(c: Call) -> str:
    """Write (or add) one element per index along an axis."""
    axis, index = c.axis(c["dim"], c.meta("self").dim()), c.value("index")
    if c.get("src") is not None:
        updates = c.value("src")
    else:
        updates = c.op("Expand", c.as_dtype(c["value"], c.out.dtype), c.op("Shape", index))
    reduction = "add" if "scatter_add" in str(c.node.target) else None
    return c.op("ScatterElements", c.value("self"), index, updates, axis=axis, reduction=reduction)


@translates("aten.index.Tensor")
def index(c: Call) -> str:
    """Advanced indexing by one index, or by several neighbouring ones (joined and gathered at once)."""
    given = [(axis, node) for axis, node in enumerate(c["indices"]) if node is not None]
    if any(tensor_meta(node).dtype in (torch.bool, torch.uint8) for _, node in given):
        raise NotImplementedError("indexing by a boolean mask: the result's shape depends on the data")
    if len(given) == 1:
        axis, node = given[0]
        return c.op("Gather", c.value("self"), c.name_of(node), axis=axis)
    return _gather_many(c, [axis for axis, _ in given], [node for _, node in given])


def _gather_many(c: Call, axes: list[int], nodes: list[Any]) -> str:
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise NotImplementedError("advanced indexing of axes that are not neighbours")
    rank, first = c.meta("self").dim(), axes[0]
    index_rank = max(tensor_meta(node).dim() for node in nodes)
    joined = _joined_indices(c, nodes)
    order = [*axes, *(axis for axis in range(rank) if axis not in axes)]
    value = c.value("self") if first == 0 else c.op("Transpose", c.value("self"), perm=order)
    gathered = c.op("GatherND", value, joined)
    if first == 0:
        return gathered
    total = index_rank + rank - len(axes)  # the index axes came to the front: put them where the first one was
    back = [*range(index_rank, index_rank + first), *range(index_rank), *range(index_rank + first, total)]
    return c.op("Transpose", gathered, perm=back)


def _joined_indices(c: Call, nodes: list[Any]) -> str:
    """Index tensors broadcast against each other and stacked on a last axis, as GatherND wants them."""
    ids = [c.as_dtype(node, torch.int64) for node in nodes]
    shapes = [tuple(tensor_meta(node).shape) for node in nodes]
    if any(str(shape) != str(shapes[0]) for shape in shapes):
        total = ids[0]
        for other in ids[1:]:
            total = c.op("Add", total, other)
        shape = c.op("Shape", total)
        ids = [c.op("Expand", one, shape) for one in ids]
    last = c.ints([-1])
    return c.op("Concat", *(c.op("Unsqueeze", one, last) for one in ids), axis=-1)


@translates("aten.select_scatter.default", "aten.slice_scatter.default")
def write_part(c: Call) -> str:
    """The tensor with one slice replaced: what is before, the new part, what is after."""
    shape, rank = c.meta("self").shape, c.meta("self").dim()
    axis, part = c.axis(c["dim"], rank), c.value("src")
    size = shape[axis]
    if not isinstance(size, int) or c.get("step", 1) != 1:
        raise NotImplementedError("replacing a slice with a step or on an axis of dynamic size")
    if "select" in str(c.node.target):
        start = c.axis(c["index"], size)
        end, part = start + 1, c.op("Unsqueeze", part, c.ints([axis]))
    else:
        start, end, _ = slice(c.get("start"), c.get("end")).indices(size)
    pieces = [part]
    if start > 0:
        pieces.insert(0, c.op("Slice", c.value("self"), c.ints([0]), c.ints([start]), c.ints([axis])))
    if end < size:
        pieces.append(c.op("Slice", c.value("self"), c.ints([end]), c.ints([_LAST]), c.ints([axis])))
    return pieces[0] if len(pieces) == 1 else c.op("Concat", *pieces, axis=axis)


@translates("aten.one_hot.default")
def one_hot(c: Call) -> str:
    """One-hot along a new last axis."""
    classes = c["num_classes"]
    if isinstance(classes, Node) or classes < 0:
        raise NotImplementedError("one_hot without a fixed number of classes")
    return c.op("OneHot", c.value("self"), c.writer.constant(classes, torch.int64), c.constant([0, 1]), axis=-1)
