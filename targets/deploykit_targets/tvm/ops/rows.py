"""Softmax, normalisation and reductions: what needs sums over some axes, which a copy brings to the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from deploykit_targets.tvm.emit import Part, dtype_of, natural_order, whole
from deploykit_targets.tvm.kernels.reduce import reduce
from deploykit_targets.tvm.kernels.rows import layer_norm, softmax
from deploykit_targets.tvm.ops.elementwise import converted_value
from deploykit_targets.tvm.ops.pooling import spatial_mean
from deploykit_targets.tvm.ops.table import Call, affine_of, lowers, tail_of
from deploykit_targets.tvm.values import Array, Tensor, View, dense_strides


@lowers("aten.softmax.int", "aten._softmax.default")
def softmax_of(c: Call) -> Tensor:
    """Softmax along any axis, rounded at once where nothing else reads it."""
    value = c.tensor("self")
    order = rows_order(value, [int(c["dim"])])
    source = c.emit.dense(value, order, real=True)
    tail = tail_of(c.node)
    to = tail.affine if tail.limits is None else None
    dtype = tail.dtype if to is not None else "float32"
    columns = c.shape[order[-1]]
    rows = math.prod(c.shape) // columns
    result = c.emit.new(c.shape, dtype, order, to)
    key = (rows, columns, to, dtype)
    c.emit.call("softmax", key, lambda: softmax(rows, columns, to=to, dtype=dtype), [whole(source)], [whole(result)])
    return _given(c, result, rounded=to is not None)


@lowers("aten.layer_norm.default")
def layer_norm_of(c: Call) -> Tensor:
    """Layer normalisation over the last axes."""
    return _normalised(c, "input", len(c["normalized_shape"]), float(c["eps"]), centred=True)


@lowers("aten.rms_norm.default")
def rms_norm_of(c: Call) -> Tensor:
    """RMS normalisation over the last axes."""
    eps = c["eps"]
    return _normalised(
        c, "input", len(c["normalized_shape"]), 1.1920929e-07 if eps is None else float(eps), centred=False
    )


def _normalised(c: Call, name: str, axes: int, epsilon: float, *, centred: bool) -> Tensor:
    value = c.tensor(name)
    source = c.emit.dense(value, rows_order(value, range(-axes, 0)), real=True)
    columns = math.prod(c.shape[-axes:])
    rows = math.prod(c.shape) // columns
    weight, bias = c.constant("weight"), c.constant("bias") if "bias" in c.arguments else None
    scales = np.ones(columns, np.float32) if weight is None else weight.real
    shifts = np.zeros(columns, np.float32) if bias is None else bias.real
    return _norm(c, source, (rows, columns), (scales, shifts), epsilon, centred=centred)


def _norm(
    c: Call, source: View, size: tuple[int, int], parameters: tuple[Array, Array], epsilon: float, *, centred: bool
) -> Tensor:
    rows, columns = size
    tail = tail_of(c.node)
    to = tail.affine if tail.limits is None else None
    dtype = tail.dtype if to is not None else "float32"
    result = c.emit.new(c.shape, dtype, source.order, to)
    weights = [Part(c.emit.constant(parameter), columns) for parameter in parameters]
    c.emit.call(
        "norm",
        (rows, columns, epsilon, centred, to, dtype),
        lambda: layer_norm(rows, columns, epsilon, centred=centred, to=to, dtype=dtype),
        [whole(source), *weights],
        [whole(result)],
    )
    return _given(c, result, rounded=to is not None)


def _given(c: Call, result: View, *, rounded: bool) -> View:
    for node in tail_of(c.node).nodes if rounded else (c.node,):
        c.lowering.values[node] = result
    return result


@lowers(
    "aten.mean.dim",
    "aten.sum.dim_IntList",
    "aten.amax.default",
    "aten.amin.default",
    "aten.mean.default",
    "aten.sum.default",
)
def reduced(c: Call) -> Tensor:
    """Sum, mean, maximum or minimum over some axes."""
    kind = str(c.node.target).split(".")[1]
    value = c.tensor("self")
    rank = len(value.shape)
    axes = sorted(int(axis) % rank for axis in (c.arguments.get("dim") or range(rank)))
    if kind == "mean" and rank == 4 and axes == [2, 3]:
        return spatial_mean(c)
    return reduction(c, value, axes, kind)


def reduction(c: Call, value: Tensor, axes: Sequence[int], kind: str) -> View:
    """A reduction over some axes, in the dtype of its result."""
    dtype = c.dtype
    if dtype_of(value) != dtype and affine_of(value) is None:
        value = converted_value(value, dtype)
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    source = c.emit.dense(value, (*kept, *axes), real=affine_of(value) is not None)
    length = math.prod(value.shape[axis] for axis in axes)
    rows = math.prod(value.shape[axis] for axis in kept)
    kept_shape = tuple(value.shape[axis] for axis in kept)
    result = c.emit.new(kept_shape, dtype)
    key = (rows, length, kind, dtype)
    c.emit.call("reduce", key, lambda: reduce(*key), [whole(source)], [whole(result)])
    return replace(result, shape=c.shape, strides=dense_strides(c.shape, range(len(c.shape))))


def rows_order(value: Tensor, last: Iterable[int]) -> tuple[int, ...]:
    """The order in which a value lies in memory, with some axes at the end: what is computed row by row fits any."""
    rank = len(value.shape)
    chosen = [axis % rank for axis in last]
    return (*(axis for axis in natural_order(value) if axis not in chosen), *chosen)
