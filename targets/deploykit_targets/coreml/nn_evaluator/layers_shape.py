"""Layers that move, select, count and reduce."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.operation import ints
from deploykit_targets.coreml.nn_evaluator.layer import (
    FormError,
    Function,
    LayerTable,
    Rule,
    integers,
    mil,
    plain,
    whole,
)

_CHANNEL = -3
"""Axis of the channels in the layers that know no axis numbers."""


def _reshape_static(p: Any) -> Function:
    shape = tuple(p.targetShape)
    return lambda x: x.reshape(shape)


def _rank_preserving(p: Any) -> Function:
    """A zero keeps the size of its axis; one -1 is inferred."""
    wanted = tuple(p.targetShape)
    return lambda x: x.reshape([size or x.shape[axis] for axis, size in enumerate(wanted)])


def _squeeze(p: Any) -> Function:
    """The last axis stays: nothing in a network has rank 0."""

    def run(x: Tensor) -> Tensor:
        axes = None if p.squeezeAll or not p.axes else integers(p.axes)
        result: Tensor = mil("squeeze")(x=x, axes=axes)
        return result if result.ndim else result.reshape(1)

    return run


def _expand_dims(p: Any) -> Function:
    axes = integers(p.axes)
    return lambda x: mil("expand_dims")(x=x, axes=axes)


def _transpose(p: Any) -> Function:
    axes = tuple(int(axis) for axis in p.axes)
    return lambda x: x.permute(axes)


def _concat_nd(p: Any) -> Function:
    return lambda *values: mil("concat")(values=list(values), axis=p.axis, interleave=p.interleave)


def _concat(p: Any) -> Function:
    if p.sequenceConcat:
        raise FormError("along sequences")
    return lambda *values: torch.cat(values, _CHANNEL)


def _split_nd(p: Any) -> Function:
    sizes = [int(size) for size in p.splitSizes]

    def run(x: Tensor) -> list[Tensor]:
        size = sizes or x.shape[p.axis] // (p.numSplits or 1)
        return list(torch.split(x, size, p.axis))

    return run


def _slice(p: Any) -> Function:
    axis = (-3, -2, -1)[p.axis]

    def run(x: Tensor) -> Tensor:
        end = p.endIndex if p.endIndex > 0 else x.shape[axis] + p.endIndex  # 0 is the end, below counts from it
        return x.narrow(axis, p.startIndex, end - p.startIndex).index_select(
            axis, torch.arange(0, end - p.startIndex, p.stride or 1)
        )

    return run


def _bools(values: Any) -> Tensor | None:
    return torch.tensor(list(values)) if values else None


def _slice_static(p: Any) -> Function:
    masks = {
        "begin_mask": _bools(p.beginMasks),
        "end_mask": _bools(p.endMasks),
        "squeeze_mask": _bools(p.squeezeMasks),
    }
    begin, end, stride = (integers(each) for each in (p.beginIds, p.endIds, p.strides))
    return lambda x: _ranked(mil("slice_by_index")(x=x, begin=begin, end=end, stride=stride, **masks))


def _slice_dynamic(p: Any) -> Function:
    """Begins, and as they are given ends, strides and masks, come as inputs; what is missing is in the layer."""
    kept = {"stride": p.strides, "begin_mask": p.beginMasks, "end_mask": p.endMasks, "squeeze_mask": p.squeezeMasks}

    def run(x: Tensor, begin: Tensor, *given: Tensor) -> Tensor:
        named = dict(zip(("end", "stride", "begin_mask", "end_mask", "squeeze_mask"), given, strict=False))
        end = whole(named.pop("end")) if "end" in named else integers(p.endIds)
        arguments: dict[str, Any] = {
            name: (integers(values) if name == "stride" else _bools(values)) if len(values) else None
            for name, values in kept.items()
        }
        arguments |= {name: whole(v) if name == "stride" else v != 0 for name, v in named.items()}
        return _ranked(mil("slice_by_index")(x=x, begin=whole(begin), end=end, **arguments))

    return run


def _ranked(value: Tensor) -> Tensor:
    return value if value.ndim else value.reshape(1)


def _tile(p: Any) -> Function:
    reps = integers(p.reps)
    return lambda x, *given: mil("tile")(x=x, reps=whole(given[0]) if given else reps)


def _gather(p: Any) -> Function:
    def run(x: Tensor, indices: Tensor) -> Tensor:
        axis = p.axis % x.ndim
        index = _index(indices, x.shape[axis])
        return x.index_select(axis, index.reshape(-1)).reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])

    return run


def _index(indices: Tensor, size: int) -> Tensor:
    """Indices in [0, size); negative ones count from the end.

    Raises:
        ValueError: an index is out of range.
    """
    index = whole(indices)
    index = torch.where(index < 0, index + size, index)
    if bool(((index < 0) | (index >= size)).any()):
        raise ValueError(f"an index is outside of [0, {size})")
    return index


def _gather_along(p: Any) -> Function:
    return lambda x, indices: torch.gather(x, p.axis, _index(indices, x.shape[p.axis]))


def _gather_nd(x: Tensor, indices: Tensor) -> Tensor:
    columns = whole(indices).unbind(-1)
    return x[tuple(_index(column, x.shape[axis]) for axis, column in enumerate(columns))]


def _top_k(p: Any) -> Function:
    def run(x: Tensor, *given: Tensor) -> list[Tensor]:
        count = int(given[0]) if given else p.K
        order = torch.argsort(x, dim=p.axis, descending=not p.useBottomK, stable=True)
        index = order.narrow(p.axis, 0, count)
        return [torch.gather(x, p.axis, index), index.float()]

    return run


def _argument(find: Any) -> Rule:
    """Index of the first largest or smallest value."""
    return lambda p: lambda x: _ranked(find(x, dim=p.axis, keepdim=not p.removeDim).float())


def _reduction(name: str) -> Rule:
    def rule(p: Any) -> Function:
        axes = None if p.reduceAll or not p.axes else integers(p.axes)
        return lambda x: _ranked(mil(name)(x=x, axes=axes, keep_dims=p.keepDims))

    return rule


def _one_hot(p: Any) -> Function:
    def run(indices: Tensor, *given: Tensor) -> Tensor:
        size = int(given[0]) if given else p.oneHotVectorSize
        axis = p.axis if p.axis >= 0 else p.axis + indices.ndim + 1
        hot = torch.arange(size).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
        return torch.where(whole(indices).unsqueeze(axis) == hot, p.onValue, p.offValue)

    return run


def _range(p: Any) -> Function:
    def run(end: Tensor, *given: Tensor) -> Tensor:
        start = float(given[0]) if given else p.startValue
        step = float(given[1]) if len(given) > 1 else p.stepSizeValue
        return torch.arange(start, float(end), step, dtype=torch.float32)

    return run


def _broadcast_static(p: Any) -> Function:
    shape = tuple(p.targetShape)
    return lambda x: x.expand(shape)


def _constant_pad(p: Any) -> Function:
    if p.padToGivenOutputSizeMode:
        raise FormError("padding to a given size")
    amounts = integers(p.padAmounts)
    return lambda x, *given: mil("pad")(
        x=x, pad=whole(given[0]) if given else amounts, mode="constant", constant_val=p.value
    )


def _crop(p: Any) -> Function:
    edges = p.cropAmounts.borderAmounts
    if p.offset or len(edges) != 2:
        raise FormError("to the size of another input")
    height, width = (integers((edge.startEdgeSize, edge.endEdgeSize)) for edge in edges)
    return lambda x: mil("crop")(x=x, crop_height=height, crop_width=width)


_REORGANIZED: Final = (
    ("space_to_depth", "block_size"),
    ("depth_to_space", "block_size"),
    ("pixel_shuffle", "upscale_factor"),
)


def _reorganize(p: Any) -> Function:
    name, size = _REORGANIZED[p.mode]
    return lambda x: mil(name)(x=x, **{size: p.blockSize or 2})


OPS: Final[LayerTable] = {
    "argMax": _argument(torch.argmax),
    "argMin": _argument(torch.argmin),
    "argSort": lambda p: lambda x: torch.argsort(x, dim=p.axis, descending=p.descending, stable=True).float(),
    "broadcastToDynamic": plain(lambda x, shape: x.expand(ints(whole(shape)))),
    "broadcastToLike": plain(lambda x, like: x.expand(like.shape)),
    "broadcastToStatic": _broadcast_static,
    "concat": _concat,
    "concatND": _concat_nd,
    "constantPad": _constant_pad,
    "copy": plain(lambda x: x),
    "crop": _crop,
    "cumSum": lambda p: (
        lambda x, *axis: mil("cumsum")(
            x=x, axis=int(axis[0]) if axis else p.axis, exclusive=p.excludeFinalSum, reverse=p.reverse
        )
    ),
    "expandDims": _expand_dims,
    "fillDynamic": lambda p: lambda shape: torch.full(ints(whole(shape)), p.value),
    "fillLike": lambda p: lambda like: torch.full(like.shape, p.value),
    "fillStatic": lambda p: lambda: torch.full(tuple(p.targetShape), p.value),
    "flattenTo2D": lambda p: lambda x: mil("flatten2d")(x=x, axis=p.axis),
    "gather": _gather,
    "gatherAlongAxis": _gather_along,
    "gatherND": plain(_gather_nd),
    "getShape": plain(lambda x: torch.tensor(x.shape, dtype=torch.float32)),
    "lowerTriangular": lambda p: lambda x: torch.tril(x, p.k),
    "matrixBandPart": lambda p: lambda x: mil("band_part")(x=x, lower=p.numLower, upper=p.numUpper),
    "oneHot": _one_hot,
    "rangeDynamic": _range,
    "rangeStatic": lambda p: lambda: torch.arange(p.startValue, p.endValue, p.stepSizeValue, dtype=torch.float32),
    "rankPreservingReshape": _rank_preserving,
    "reorganizeData": _reorganize,
    "reshapeDynamic": plain(lambda x, shape: x.reshape(ints(whole(shape)))),
    "reshapeLike": plain(lambda x, like: x.reshape(like.shape)),
    "reshapeStatic": _reshape_static,
    "reverse": lambda p: lambda x: torch.flip(x, [axis for axis, flip in enumerate(p.reverseDim) if flip]),
    "slice": _slice,
    "sliceDynamic": _slice_dynamic,
    "sliceStatic": _slice_static,
    "slidingWindows": lambda p: (
        lambda x: mil("sliding_windows")(x=x, axis=p.axis, size=p.windowSize, stride=p.step or 1)
    ),
    "split": lambda p: lambda x: list(torch.tensor_split(x, p.nOutputs, _CHANNEL)),
    "splitND": _split_nd,
    "squeeze": _squeeze,
    "stack": lambda p: lambda *values: torch.stack(values, p.axis),
    "tile": _tile,
    "topK": _top_k,
    "transpose": _transpose,
    "upperTriangular": lambda p: lambda x: torch.triu(x, p.k),
    **{
        f"reduce{kind}": _reduction(f"reduce_{name}")
        for kind, name in {
            "L1": "l1_norm",
            "L2": "l2_norm",
            "LogSum": "log_sum",
            "LogSumExp": "log_sum_exp",
            "Max": "max",
            "Mean": "mean",
            "Min": "min",
            "Prod": "prod",
            "Sum": "sum",
            "SumSquare": "sum_square",
        }.items()
    },
}
"""Rules of this family, by the name of the layer's parameters."""
