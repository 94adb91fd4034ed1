"""Tensors put beside each other: every part is written to its place, arithmetic that is still to be done included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploykit_targets.tvm.emit import dtype_of, natural_order
from deploykit_targets.tvm.kernels.expressions import Affine
from deploykit_targets.tvm.ops.alias import reshaped
from deploykit_targets.tvm.ops.table import Call, NotCoveredError, affine_of, lowers
from deploykit_targets.tvm.values import Constant, Tensor, View, elements


@lowers("aten.cat.default")
def concatenate(c: Call) -> Tensor:
    """Parts along one axis. Parts that are quantized alike stay integers."""
    parts = [part for part in map(c.lowering.tensor, c["tensors"]) if elements(part.shape)]
    return _joined(c, parts, int(c["dim"]) % len(c.shape), c.shape)


@lowers("aten.stack.default")
def stack(c: Call) -> Tensor:
    """Parts along a new axis."""
    axis = int(c["dim"]) % len(c.shape)
    shape = (*c.shape[:axis], 1, *c.shape[axis + 1 :])
    return _joined(c, [reshaped(c.emit, c.lowering.tensor(part), shape) for part in c["tensors"]], axis, c.shape)


def _joined(c: Call, parts: Sequence[Tensor], axis: int, shape: tuple[int, ...]) -> View:
    affine = _common(parts)
    order = natural_order(max(parts, key=lambda part: 0 if isinstance(part, Constant) else elements(part.shape)))
    dtype = dtype_of(parts[0]) if affine is not None else c.dtype
    result = c.emit.new(shape, dtype, order, affine)
    start = 0
    for part in parts:
        c.emit.store(part, replace(result, shape=part.shape, offset=start * result.strides[axis]))
        start += part.shape[axis]
    return result


def _common(parts: Sequence[Tensor]) -> Affine | None:
    """The quantization that all parts have."""
    found = {affine_of(part) for part in parts}
    return found.pop() if len(found) == 1 else None


@lowers("aten.constant_pad_nd.default")
def pad(c: Call) -> Tensor:
    """A border of one value, or a cut where the width is negative."""
    value, widths = c.tensor("self"), [int(w) for w in c["pad"]]
    affine = affine_of(value)
    if affine is not None and float(c["value"]) != 0:
        affine = None
    pairs = [(0, 0)] * (len(c.shape) - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    order = natural_order(value)
    result = c.emit.new(c.shape, dtype_of(value) if affine is not None else c.dtype, order, affine)
    fill = affine.zero_point if affine is not None else c["value"]
    c.emit.fill(result, fill)
    view = c.emit.view(value)
    kept, offset, start = [], view.offset, 0
    for axis, (before, after) in enumerate(pairs):
        kept.append(view.shape[axis] + min(before, 0) + min(after, 0))
        offset += max(0, -before) * view.strides[axis]
        start += max(0, before) * result.strides[axis]
    if min(kept) <= 0:
        raise NotCoveredError("it cuts everything away")
    c.emit.store(replace(view, shape=tuple(kept), offset=offset), replace(result, shape=tuple(kept), offset=start))
    return result


@lowers("aten.repeat.default")
def repeat(c: Call) -> Tensor:
    """Copies beside each other, as a broadcast along new axes."""
    value = c.tensor("self")
    counts = [int(n) for n in c["repeats"]]
    sizes = (1,) * (len(counts) - len(value.shape)) + tuple(value.shape)
    wide = c.emit.view(reshaped(c.emit, value, tuple(n for size in sizes for n in (1, size))))
    shape = tuple(n for pair in zip(counts, sizes, strict=True) for n in pair)
    strides = tuple(0 if index % 2 == 0 else stride for index, stride in enumerate(wide.strides))
    return reshaped(c.emit, replace(wide, shape=shape, strides=strides), c.shape)
