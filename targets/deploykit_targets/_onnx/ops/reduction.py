"""Reductions over axes, extremes with their positions, cumulative sums, sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deploykit_targets._onnx.ops.table import Call, Translation, translates

_REDUCE = {"sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd"}


def axes_of(dim: Any, rank: int) -> list[int] | None:
    """Sorted non-negative axes; None (or an empty list, as PyTorch has it) for all."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return None
    return sorted({axis + rank if axis < 0 else axis for axis in (dim if isinstance(dim, Sequence) else [dim])})


def reduce(c: Call, op_type: str, value: str, dim: Any, keepdim: bool) -> str:
    """A reduction in the opset's form (axes are an input from opset 18 on)."""
    axes = axes_of(dim, c.meta(next(iter(c.arguments))).dim())
    return c.op(op_type, value, c.ints(axes) if axes is not None else "", keepdims=int(keepdim))


def _reduction(op_type: str) -> Translation:
    def write(c: Call) -> str:
        value = c.as_dtype(c["self"], c.out.dtype)
        return reduce(c, op_type, value, c.get("dim"), c.get("keepdim", False))

    return write


for _stem, _op in _REDUCE.items():
    _suffixes = {
        "sum": (".default", ".dim_IntList"),
        "prod": (".default", ".dim_int"),
    }.get(_stem, (".default",))
    translates(*(f"aten.{_stem}{suffix}" for suffix in _suffixes))(_reduction(_op))


@translates("aten.mean.dim", "aten.mean.default")
def mean(c: Call) -> str:
    """Mean; over the whole of an image it is global pooling, for which there are int8 and channels-last kernels."""
    meta = c.meta("self")
    value = c.as_dtype(c["self"], c.out.dtype)
    if meta.dim() == 4 and axes_of(c.get("dim"), 4) == [2, 3]:
        pooled = c.op("GlobalAveragePool", value)
        return pooled if c["keepdim"] else c.op("Squeeze", pooled, c.ints([2, 3]))
    return reduce(c, "ReduceMean", value, c.get("dim"), c.get("keepdim", False))


translates("aten.max.default")(_reduction("ReduceMax"))
translates("aten.min.default")(_reduction("ReduceMin"))


@translates("aten.any.default", "aten.any.dim", "aten.any.dims", "aten.all.default", "aten.all.dim", "aten.all.dims")
def truth(c: Call) -> str:
    """Whether any or all are non-zero: an extreme over 0 and 1."""
    flags = c.cast(c.as_dtype(c["self"], torch.bool), torch.bool, torch.int32)
    op_type = "ReduceMax" if ".any." in str(c.node.target) else "ReduceMin"
    found = reduce(c, op_type, flags, c.get("dim"), c.get("keepdim", False))
    return c.cast(found, torch.int32, c.out.dtype)


@translates("aten.argmax.default", "aten.argmin.default")
def arg_extreme(c: Call) -> str:
    """Position of the first extreme; without an axis, in the flattened tensor."""
    op_type = "ArgMax" if "argmax" in str(c.node.target) else "ArgMin"
    rank, dim = c.meta("self").dim(), c.get("dim")
    if dim is None or rank < 2:
        return _arg_of_vector(c, op_type, list(c.out.shape))
    return c.op(op_type, c.value("self"), axis=c.axis(dim, rank), keepdims=int(c["keepdim"]))


def _arg_of_vector(c: Call, op_type: str, shape: list[int]) -> str:
    """The position in all elements as those of one row: TensorRT refuses vectors."""
    row = c.op("Reshape", c.value("self"), c.ints([1, -1]))
    return c.op("Reshape", c.op(op_type, row, axis=1, keepdims=0), c.ints(shape))


@translates("aten.max.dim", "aten.min.dim")
def extreme_with_position(c: Call) -> tuple[str, str]:
    """The extreme along an axis and where it is."""
    kind = "Max" if ".max." in str(c.node.target) else "Min"
    rank, value = c.meta("self").dim(), c.value("self")
    axis = c.axis(c["dim"], rank) if rank else 0
    found = reduce(c, f"Reduce{kind}", value, axis, c["keepdim"]) if rank else c.op("Identity", value)
    if rank < 2:
        return found, _arg_of_vector(c, f"Arg{kind}", [1] if rank and c["keepdim"] else [])
    return found, c.op(f"Arg{kind}", value, axis=axis, keepdims=int(c["keepdim"]))


@translates("aten.topk.default", "aten.sort.default")
def top(c: Call) -> tuple[str, ...]:
    """The k largest (smallest), or all of them in order."""
    rank = c.meta("self").dim()
    axis = c.axis(c["dim"], rank)
    if "topk" in str(c.node.target):
        count, largest = c["k"], c["largest"]
    else:
        count, largest = c.meta("self").shape[axis], c["descending"]
    if not isinstance(count, int):
        raise NotImplementedError("sorting along an axis of dynamic size")
    options: dict[str, Any] = {"largest": int(largest), "sorted": 1}
    if rank > 1:
        return c.writer.multi("TopK", (c.value("self"), c.ints([count])), 2, axis=axis, **options)
    row = c.op("Reshape", c.value("self"), c.ints([1, -1]))  # TensorRT refuses vectors
    parts = c.writer.multi("TopK", (row, c.ints([count])), 2, axis=1, **options)
    return tuple(c.op("Reshape", part, c.ints([count])) for part in parts)


@translates("aten.cumsum.default")
def cumsum(c: Call) -> str:
    """Running sum along an axis."""
    axis = c.writer.constant(c.axis(c["dim"], c.meta("self").dim()), torch.int64)
    return c.op("CumSum", c.as_dtype(c["self"], c.out.dtype), axis)


@translates("aten.logsumexp.default")
def logsumexp(c: Call) -> str:
    """log(sum(exp(x))) along axes."""
    return reduce(c, "ReduceLogSumExp", c.value("self"), c["dim"], c["keepdim"])


@translates("aten.var.correction", "aten.var.dim", "aten.std.correction", "aten.std.dim")
def variance(c: Call) -> str:
    """Variance or standard deviation with n - correction in the denominator."""
    meta, value = c.meta("self"), c.value("self")
    axes = axes_of(c.get("dim"), meta.dim()) or list(range(meta.dim()))
    sizes = [meta.shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        raise NotImplementedError("variance over an axis of dynamic size")
    count = 1
    for size in sizes:
        count *= int(size)
    correction = c.get("correction", 1) if "correction" in c.arguments else int(c["unbiased"])
    centred = c.op("Sub", value, c.op("ReduceMean", value, c.ints(axes), keepdims=1))
    spread = c.op("ReduceMean", c.op("Mul", centred, centred), c.ints(axes), keepdims=int(c["keepdim"]))
    if correction:
        spread = c.op("Mul", spread, c.constant(count / max(count - correction, 1e-30)))
    return c.op("Sqrt", spread) if ".std." in str(c.node.target) else spread


@translates("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", "aten.norm.Scalar")
def vector_norm(c: Call) -> str:
    """The 1- or 2-norm along axes; others as (sum |x|^p)^(1/p)."""
    order = c.get("ord", c.get("p", 2))
    dim, keepdim, value = c.get("dim"), c.get("keepdim", False), c.as_dtype(c["self"], c.out.dtype)
    if order in (1, 2):
        return reduce(c, f"ReduceL{int(order)}", value, dim, keepdim)
    if order in (float("inf"), float("-inf")):
        return reduce(c, "ReduceMax" if order > 0 else "ReduceMin", c.op("Abs", value), dim, keepdim)
    powers = c.op("Pow", c.op("Abs", value), c.constant(order))
    return c.op("Pow", reduce(c, "ReduceSum", powers, dim, keepdim), c.constant(1 / order))
