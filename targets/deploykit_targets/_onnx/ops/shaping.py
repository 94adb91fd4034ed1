"""Operators that move elements and compute nothing: reshape, permute, slice, concatenate, split, pad, repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from deploykit_targets._onnx.ops.table import Call, tensor_meta, translates

_LAST = 2**63 - 1  # PyTorch's "to the end" in slices; ONNX reads it the same way

_IDENTITY = (
    "aten.alias.default", "aten.detach.default", "aten.detach_.default", "aten.clone.default",
    "aten.contiguous.default",
    "aten.lift_fresh_copy.default", "aten.dropout.default", "aten.feature_dropout.default", "aten.positive.default",
)  # fmt: skip


@translates(*_IDENTITY)
def identity(c: Call) -> str:
    """Nothing is written: the value itself."""
    return c.name_of(next(iter(c.arguments.values())))


@translates("aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.type_as.default")
def cast(c: Call) -> str:
    """Cast to the result's dtype; devices and layouts have no meaning here."""
    return c.as_dtype(c["self"], c.out.dtype)


def same_size(left: Any, right: Any) -> bool:
    """Whether two sizes, fixed or symbolic, are known to be equal."""
    return (left == right) if isinstance(left, int) and isinstance(right, int) else str(left) == str(right)


def reshape_to(c: Call, value: str, before: Sequence[Any], after: Sequence[Any], sizes: Sequence[Any] | None) -> str:
    """Reshape whose target is a constant wherever one exists: a symbolic axis is copied (0) or inferred (-1).

    Args:
        before, after: sizes with symbols, from the captured shapes.
        sizes: the sizes as the capture computes them, for the rare shape that needs them at run time.
    """
    target: list[int] = []
    for index, size in enumerate(after):
        if isinstance(size, int):
            target.append(size)
        elif index < len(before) and same_size(before[index], size):
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1:
        if sizes is None:
            raise NotImplementedError("a reshape with several unknown sizes")
        return c.op("Reshape", value, c.shape(sizes))
    if target.count(0) == 1 and -1 not in target:  # one unknown: -1 suits every runtime
        target[target.index(0)] = -1
    return c.op("Reshape", value, c.ints(target))


@translates("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")
def reshape(c: Call) -> str:
    """Reshape."""
    sizes = c.get("shape", c.get("size"))
    return reshape_to(c, c.value("self"), c.meta("self").shape, c.out.shape, sizes)


@translates("aten.flatten.using_ints", "aten.unflatten.int", "aten.view_as.default", "aten.reshape_as.default")
def reshape_known(c: Call) -> str:
    """A reshape whose target follows from the captured shapes."""
    return reshape_to(c, c.value("self"), c.meta("self").shape, c.out.shape, None)


@translates("aten.permute.default")
def permute(c: Call) -> str:
    """Transpose with any order of axes."""
    rank = c.meta("self").dim()
    return c.op("Transpose", c.value("self"), perm=[c.axis(dim, rank) for dim in c["dims"]])


@translates("aten.transpose.int", "aten.t.default", "aten.swapaxes.default", "aten.numpy_T.default", "aten.mT.default")
def transpose(c: Call) -> str:
    """Swap two axes (of a matrix: the two)."""
    rank = c.meta("self").dim()
    if rank < 2:
        return c.value("self")
    first, second = (c.axis(c.get(f"dim{index}", c.get(f"axis{index}", index - 2)), rank) for index in (0, 1))
    perm = list(range(rank))
    perm[first], perm[second] = perm[second], perm[first]
    return c.op("Transpose", c.value("self"), perm=perm)


@translates("aten.unsqueeze.default")
def unsqueeze(c: Call) -> str:
    """A new axis of size one."""
    return c.op("Unsqueeze", c.value("self"), c.ints([c.axis(c["dim"], c.meta("self").dim() + 1)]))


@translates("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(c: Call) -> str:
    """Drop axes of size one; an axis of another size is kept, as in PyTorch."""
    shape, dim = c.meta("self").shape, c.get("dim")
    asked = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = [c.axis(axis, len(shape)) for axis in asked]
    axes = [axis for axis in axes if isinstance(shape[axis], int) and shape[axis] == 1]
    return c.op("Squeeze", c.value("self"), c.ints(axes)) if axes else c.value("self")


@translates("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(c: Call) -> str:
    """Expand; an axis that keeps its size is written as 1, which ONNX broadcasts, so dynamic axes need no sizes."""
    have, want = list(c.meta("self").shape), list(c.out.shape)
    have = [1] * (len(want) - len(have)) + have
    kept = [same_size(before, after) for before, after in zip(have, want, strict=True)]
    if all(kept) and len(want) == c.meta("self").dim():
        return c.value("self")
    sizes = c.get("size", want)
    target = [1 if keep else size if isinstance(after, int) is False else after
              for keep, size, after in zip(kept, sizes, want, strict=True)]  # fmt: skip
    return c.op("Expand", c.value("self"), c.shape(target))


@translates("aten.slice.Tensor")
def slice_(c: Call) -> str:
    """Slice of one axis; open ends are open in ONNX too. Bounds may be computed."""
    axis = c.axis(c["dim"], c.meta("self").dim())
    start, end = c.get("start", 0), c.get("end", _LAST)
    if start == 0 and end == _LAST and c["step"] == 1:
        return c.value("self")
    bounds = (c.shape([start]), c.shape([end]))
    return c.op("Slice", c.value("self"), *bounds, c.ints([axis]), c.ints([c["step"]]))


@translates("aten.narrow.default")
def narrow(c: Call) -> str:
    """Slice by start and length."""
    axis, start = c.axis(c["dim"], c.meta("self").dim()), c["start"]
    if not isinstance(start, int) or not isinstance(c["length"], int):
        raise NotImplementedError("narrow with computed bounds")
    end = _LAST if start < 0 and start + c["length"] == 0 else start + c["length"]
    return c.op("Slice", c.value("self"), c.ints([start]), c.ints([end]), c.ints([axis]))


@translates("aten.select.int")
def select(c: Call) -> str:
    """One element of an axis, the axis dropped."""
    index = c["index"]
    chosen = c.name_of(index) if isinstance(index, Node) else c.writer.constant(index, torch.int64)
    return c.op("Gather", c.value("self"), chosen, axis=c.axis(c["dim"], c.meta("self").dim()))


@translates("aten.cat.default", "aten.concat.default")
def cat(c: Call) -> str:
    """Concatenate; PyTorch skips empty 1-D tensors."""
    parts = [node for node in c["tensors"] if tuple(tensor_meta(node).shape) != (0,)]
    names = [c.as_dtype(node, c.out.dtype) for node in parts]
    return names[0] if len(names) == 1 else c.op("Concat", *names, axis=c.axis(c["dim"], c.out.dim()))


@translates("aten.stack.default")
def stack(c: Call) -> str:
    """Concatenate along a new axis."""
    axis = c.axis(c["dim"], c.out.dim())
    parts = [c.op("Unsqueeze", c.as_dtype(node, c.out.dtype), c.ints([axis])) for node in c["tensors"]]
    return c.op("Concat", *parts, axis=axis)


@translates("aten.split.Tensor", "aten.split_with_sizes.default", "aten.split.sizes", "aten.chunk.default")
def split(c: Call) -> tuple[str, ...]:
    """Split with the sizes the capture found."""
    axis = c.axis(c["dim"], c.meta("self").dim())
    sizes = [part.shape[axis] for part in c.out]
    if len(sizes) == 1:
        return (c.value("self"),)
    if not all(isinstance(size, int) for size in sizes):
        raise NotImplementedError("splitting an axis of dynamic size")
    return c.writer.multi("Split", (c.value("self"), c.ints(sizes)), len(sizes), axis=axis)


@translates("aten.unbind.int")
def unbind(c: Call) -> tuple[str, ...]:
    """One tensor per element of an axis, the axis dropped; Gather, so that unused parts cost nothing."""
    axis = c.axis(c["dim"], c.meta("self").dim())
    value = c.value("self")
    used = c.read_parts()
    return tuple(
        c.op("Gather", value, c.writer.constant(index, torch.int64), axis=axis) if index in used else ""
        for index in range(len(c.out))
    )


@translates("aten.repeat.default", "aten.tile.default")
def repeat(c: Call) -> str:
    """Tile; more repeats than axes add leading axes."""
    repeats, rank = list(c.get("repeats", c.get("dims"))), c.meta("self").dim()
    repeats = [1] * (rank - len(repeats)) + repeats
    value = c.value("self")
    if len(repeats) > rank:
        value = c.op("Unsqueeze", value, c.ints(range(len(repeats) - rank)))
    return c.op("Tile", value, c.shape(repeats))


@translates("aten.flip.default")
def flip(c: Call) -> str:
    """Slices with step -1."""
    axes = [c.axis(dim, c.meta("self").dim()) for dim in c["dims"]]
    ones, ends = [-1] * len(axes), [-_LAST] * len(axes)
    return c.op("Slice", c.value("self"), c.ints(ones), c.ints(ends), c.ints(axes), c.ints(ones))


@translates("aten.roll.default")
def roll(c: Call) -> str:
    """Two slices, swapped and joined, per axis."""
    value, shape = c.value("self"), c.meta("self").shape
    if not c["dims"]:
        raise NotImplementedError("roll over the flattened tensor")
    for shift, dim in zip(c["shifts"], c["dims"], strict=True):
        axis = c.axis(dim, len(shape))
        if not isinstance(shape[axis], int):
            raise NotImplementedError("roll along an axis of dynamic size")
        cut = (shape[axis] - shift) % shape[axis]
        if cut:
            head = c.op("Slice", value, c.ints([0]), c.ints([cut]), c.ints([axis]))
            tail = c.op("Slice", value, c.ints([cut]), c.ints([_LAST]), c.ints([axis]))
            value = c.op("Concat", tail, head, axis=axis)
    return value


@translates("aten.constant_pad_nd.default", "aten.pad.default")
def pad(c: Call) -> str:
    """Pad from the last axis backwards, as PyTorch lists it; negative padding crops."""
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[
        c.get("mode", "constant")
    ]
    value = c.constant(c.get("value", 0)) if mode == "constant" else ""
    return c.op("Pad", c.value("self"), c.ints(_pads(c["pad"], c.meta("self").dim())), value, mode=mode)


@translates(*(f"aten.{kind}_pad{axes}d.default" for kind in ("reflection", "replication") for axes in (1, 2, 3)))
def pad_mirrored(c: Call) -> str:
    """Pad with the border's own values."""
    mode = "reflect" if "reflection" in str(c.node.target) else "edge"
    return c.op("Pad", c.value("self"), c.ints(_pads(c["padding"], c.meta("self").dim())), mode=mode)


def _pads(padding: Sequence[Any], rank: int) -> list[int]:
    if not all(isinstance(size, int) for size in padding):
        raise NotImplementedError("padding computed at run time")
    begins, ends = [0] * rank, [0] * rank
    for index in range(len(padding) // 2):
        begins[rank - 1 - index], ends[rank - 1 - index] = padding[2 * index], padding[2 * index + 1]
    return begins + ends


@translates("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default")
def pixel_shuffle(c: Call) -> str:
    """Depth to space in PyTorch's channel order (CRD), or back."""
    if "unshuffle" not in str(c.node.target):
        return c.op("DepthToSpace", c.value("self"), blocksize=c["upscale_factor"], mode="CRD")
    _, channels, height, width = c.meta("self").shape
    factor = c["downscale_factor"]
    if not all(isinstance(size, int) for size in (channels, height, width)):
        raise NotImplementedError("pixel_unshuffle of an image of dynamic size")
    split_shape = c.ints([-1, channels, height // factor, factor, width // factor, factor])
    blocks = c.op("Transpose", c.op("Reshape", c.value("self"), split_shape), perm=[0, 1, 3, 5, 2, 4])
    merged = [-1, channels * factor * factor, height // factor, width // factor]
    return c.op("Reshape", blocks, c.ints(merged))
