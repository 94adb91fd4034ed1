"""Resizing of images: along each axis a result is a weighted sum of a few inputs, as PyTorch itself shows.

PyTorch resizes a unit matrix at compile time; its rows say which inputs a result reads, and with which weights. So
every mode, corner rule and scale that PyTorch has comes out as PyTorch has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deploykit_targets.tvm.emit import whole
from deploykit_targets.tvm.kernels.gather import gather
from deploykit_targets.tvm.kernels.resample import resample
from deploykit_targets.tvm.ops.alias import reshaped
from deploykit_targets.tvm.ops.table import Call, lowers
from deploykit_targets.tvm.values import Array, Constant, Tensor, View, elements, nhwc


@lowers(
    "aten.upsample_nearest1d.vec",
    "aten.upsample_nearest2d.vec",
    "aten._upsample_nearest_exact2d.vec",
    "aten.upsample_linear1d.vec",
    "aten.upsample_bilinear2d.vec",
    "aten.upsample_bicubic2d.vec",
)
def resized(c: Call) -> Tensor:
    """One axis after the other; nearest neighbours of quantized images stay integers."""
    value = c.tensor("input")
    rank = len(value.shape)
    matrices = [_matrix(c, axis) for axis in range(2, rank)]
    picks = all(_is_pick(matrix) for matrix in matrices)
    view = c.emit.dense(value, nhwc(rank), real=not picks)
    for axis, matrix in enumerate(matrices, start=2):
        view = _along(c, view, axis, matrix, picks=picks)
    return reshaped(c.emit, view, c.shape)


def _matrix(c: Call, axis: int) -> Array:
    """What PyTorch makes of a unit matrix along one axis: shape (results, inputs)."""
    shape = c.tensor("input").shape
    size, spatial = shape[axis], len(shape) - 2
    unit = torch.eye(size).reshape(1, size, *(size if a == axis else 1 for a in range(2, len(shape))))
    arguments = dict(c.arguments)
    arguments["input"] = unit
    if arguments.get("output_size") is not None:
        arguments["output_size"] = [c.shape[axis] if a == axis else 1 for a in range(2, len(shape))]
    if arguments.get("scale_factors") is not None:
        own = arguments["scale_factors"][axis - 2]
        arguments["scale_factors"] = [own if a == axis - 2 else 1.0 for a in range(spatial)]
    target: Any = c.node.target
    result: Array = target(**arguments).reshape(size, c.shape[axis]).T.numpy()
    return result


def _is_pick(matrix: Array) -> bool:
    return bool((np.count_nonzero(matrix, axis=1) == 1).all() and np.isin(matrix, (0, 1)).all())


def _along(c: Call, view: View, axis: int, matrix: Array, *, picks: bool) -> View:
    """An axis of a dense NHWC tensor resized."""
    count = matrix.shape[0]
    if count == matrix.shape[1] and np.array_equal(matrix, np.eye(count)):
        return view
    shape = tuple(count if a == axis else size for a, size in enumerate(view.shape))
    outer, inner = elements(view.shape[2:axis]) * view.shape[0], elements(view.shape[axis + 1 :]) * view.shape[1]
    result = c.emit.new(shape, view.dtype, nhwc(len(shape)), view.affine)
    if picks:
        chosen = c.emit.view(Constant(matrix.argmax(axis=1).astype(np.int32)))
        key = (outer, view.shape[axis], inner, count, view.dtype, "int32")
        c.emit.call("gather", key, lambda: gather(*key), [whole(view), whole(chosen)], [whole(result)])
        return result
    indices, weights = _taps(matrix)
    size = (outer, view.shape[axis], inner, count, indices.shape[1])
    c.emit.call(
        "resample",
        size,
        lambda: resample(*size),
        [whole(view), whole(c.emit.view(Constant(indices))), whole(c.emit.view(Constant(weights)))],
        [whole(result)],
    )
    return result


def _taps(matrix: Array) -> tuple[Array, Array]:
    """Inputs of each result and their weights, the same number for all."""
    most = int(np.count_nonzero(matrix, axis=1).max())
    indices = np.argsort(matrix == 0, axis=1, kind="stable")[:, :most].astype(np.int32)
    return indices, np.take_along_axis(matrix, indices, axis=1).astype(np.float32)
