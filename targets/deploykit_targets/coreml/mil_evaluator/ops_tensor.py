"""MIL ops that make tensors or search in them: fills, ranges, one-hot, sorting, cumulation, suppression, random."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.dtypes import CARRIERS
from deploykit_targets.coreml.mil_evaluator.operation import Context, Op, draws, ints, moves, rounds

Number = Tensor | float | int | bool


def _band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Keep `lower` sub-diagonals and `upper` super-diagonals of the last two axes; a negative number keeps all."""
    rows = torch.arange(x.shape[-2])[:, None]
    columns = torch.arange(x.shape[-1])
    kept = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        kept &= rows - columns <= lower
    if upper >= 0:
        kept &= columns - rows <= upper
    return torch.where(kept, x, torch.zeros_like(x))


def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    source = x.flip(axis) if reverse else x
    total = source.cumsum(axis, dtype=x.dtype)
    if exclusive:
        shifted = total.narrow(axis, 0, x.shape[axis] - 1)
        total = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), shifted], dim=axis)
    return total.flip(axis) if reverse else total


def _fill(shape: Tensor, value: Number, context: Context) -> Tensor:
    return torch.full(ints(shape), _number(value), dtype=CARRIERS[context.outputs[0].dtype])


def _fill_like(ref_tensor: Tensor, value: Number, context: Context) -> Tensor:
    return torch.full(ref_tensor.shape, _number(value), dtype=CARRIERS[context.outputs[0].dtype])


def _number(value: Number) -> float | int | bool:
    return value.item() if isinstance(value, Tensor) else value


def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).to(torch.int32)


def _one_hot(
    indices: Tensor, one_hot_vector_size: Number, on_value: Number, off_value: Number, context: Context, axis: int = -1
) -> Tensor:
    """An index outside [0, size) gives a vector of `off_value`."""
    size, where = int(one_hot_vector_size), axis % (indices.ndim + 1)
    hit = indices.unsqueeze(-1) == torch.arange(size)
    dtype = CARRIERS[context.outputs[0].dtype]
    on, off = (torch.tensor(_number(value), dtype=dtype) for value in (on_value, off_value))
    return torch.where(hit, on, off).movedim(-1, where)


def _range_1d(start: Number, end: Number, step: Number, context: Context) -> Tensor:
    """start, start + step, ... up to and without `end`; ceil((end - start) / step) elements."""
    first, last, pace = (_number(value) for value in (start, end, step))
    count = max(0, math.ceil((last - first) / pace))
    exact = torch.int64 if isinstance(first, int) else torch.float64
    return (first + pace * torch.arange(count, dtype=exact)).to(CARRIERS[context.outputs[0].dtype])


def _argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Ties are undefined in MIL; the earlier index comes first."""
    return torch.sort(x, dim=axis, descending=not ascending, stable=True).indices.to(torch.int32)


def _topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The k largest (smallest, if ascending) elements, always sorted; k = -1 takes all."""
    del sort, output_indices_dtype  # any order is allowed when unsorted; uint16 is carried in int32
    count = x.shape[axis] if k == -1 else k
    ordered = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    values, indices = (part.narrow(axis, 0, count) for part in ordered)
    return (values, indices.to(torch.int32)) if return_indices else values


# --- non-maximum suppression ----------------------------------------------------------------------------------


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of all pairs; boxes (B, 4) as centre x, centre y, width, height."""
    centre, extent = boxes[:, :2], boxes[:, 2:]
    low, high = centre - extent / 2, centre + extent / 2
    sides = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp_min(0)
    shared, area = sides.prod(-1), extent.prod(-1)
    union = area[:, None] + area - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


def _survivors(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int, by_class: bool
) -> list[int]:
    """Indices of the kept boxes in descending score; the best box alone where the threshold rejects all."""
    best, label = scores.max(dim=-1)
    overlap = _overlaps(boxes)
    kept: list[int] = []
    for candidate in torch.sort(best, descending=True, stable=True).indices.tolist():
        if best[candidate] < score_threshold or len(kept) == limit:
            break
        rivals = [box for box in kept if not by_class or label[box] == label[candidate]]
        if not rivals or bool((overlap[candidate, rivals] <= iou_threshold).all()):
            kept.append(candidate)
    return kept or [int(best.argmax())]


def _suppress(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int, by_class: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """boxes (n, B, 4), scores (n, B, K) -> boxes and scores padded by 0, indices padded by -1, counts."""
    n = boxes.shape[0]
    kept_boxes = torch.zeros(n, max_boxes, 4)
    kept_scores = torch.zeros(n, max_boxes, scores.shape[-1])
    indices = torch.full((n, max_boxes), -1, dtype=torch.int32)
    counts = torch.zeros(n, dtype=torch.int32)
    for item in range(n):
        kept = _survivors(boxes[item], scores[item], iou_threshold, score_threshold, max_boxes, by_class)
        kept_boxes[item, : len(kept)] = boxes[item, kept]
        kept_scores[item, : len(kept)] = scores[item, kept]
        indices[item, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
        counts[item] = len(kept)
    return kept_boxes, kept_scores, indices, counts


def _non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
    score_threshold: float | None = None,
) -> tuple[Tensor, ...]:
    """Greedy suppression. Before iOS17 boxes are rows and there is a score threshold; since, boxes are columns."""
    if score_threshold is not None:
        return _suppress(boxes, scores, iou_threshold, score_threshold, max_boxes, per_class_suppression)
    rows, columns = boxes.transpose(1, 2), scores.transpose(1, 2)
    kept = _suppress(rows, columns, iou_threshold, -math.inf, max_boxes, per_class_suppression)
    return kept[0].transpose(1, 2), kept[1].transpose(1, 2), kept[2]


# --- random ---------------------------------------------------------------------------------------------------


def _source(seed: int, context: Context) -> torch.Generator:
    """The run's generator, or a fresh one where the op has a seed of its own (-1: none)."""
    return context.settings.generator if seed == -1 else torch.Generator().manual_seed(seed)


def _random_bernoulli(shape: Tensor, context: Context, prob: float = 0.5, seed: int = -1) -> Tensor:
    return (torch.rand(ints(shape), generator=_source(seed, context)) < prob).to(torch.float32)


def _random_normal(shape: Tensor, context: Context, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    return mean + stddev * torch.randn(ints(shape), generator=_source(seed, context))


def _random_uniform(shape: Tensor, context: Context, low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    return low + (high - low) * torch.rand(ints(shape), generator=_source(seed, context))


def _random_categorical(x: Tensor, context: Context, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """Indices, with replacement, as floats of the input's type."""
    weights = torch.softmax(x, dim=-1) if mode == "logits" else x
    rows = weights.reshape(-1, weights.shape[-1])
    drawn = torch.multinomial(rows, size, replacement=True, generator=_source(seed, context))
    return drawn.reshape((*x.shape[:-1], size)).to(torch.float32)


OPS: Final[dict[str, Op]] = {
    "argsort": moves(_argsort),
    "band_part": moves(_band_part),
    "cumsum": rounds(_cumsum),
    "fill": moves(_fill, context=True),
    "fill_like": moves(_fill_like, context=True),
    "non_maximum_suppression": moves(_non_maximum_suppression),
    "non_zero": moves(_non_zero),
    "one_hot": moves(_one_hot, context=True),
    "random_bernoulli": draws(_random_bernoulli),
    "random_categorical": draws(_random_categorical),
    "random_normal": draws(_random_normal),
    "random_uniform": draws(_random_uniform),
    "range_1d": rounds(_range_1d, context=True),
    "topk": moves(_topk),
}
"""Rules of this family, by MIL name."""
