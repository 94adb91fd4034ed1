"""`embedding_bag` -> embedding and a reduction over each bag, in operators that every target has.

Bags of one size are reshaped and reduced; others are one product of a mask (bags x indices) with the embeddings.
torch.onnx writes a loop instead, which runs row by row, and the other converters have no form of it. Bags over a
dynamic number of indices are left as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deploykit.capture import fold
from deploykit.capture.editor import Call, Editor, shape_of, with_defaults
from deploykit.capture.rewrite_ops import expand

aten = torch.ops.aten

_SUM, _MEAN, _MAX = 0, 1, 2
_LOWEST = -30000.0  # below what embeddings hold, and inside float16's range


def expand_embedding_bags(editor: Editor) -> None:
    """Rewrite every embedding bag of static size of which only the result is read."""
    found = False
    for node in editor.calls(aten.embedding_bag.padding_idx, aten.embedding_bag.default):
        if all(user.args[1] == 0 for user in node.users):
            found = True
            size = _equal_size(editor, node)
            expand(editor, node, lambda *args, size=size: _bags(*args, size=size))
    if found:
        fold.fold_constants(editor)


def _equal_size(editor: Editor, node: Call) -> int | None:
    """The number of indices in every bag where the offsets are known and say so."""
    offsets = editor.value(node.args[2])
    if offsets is None or not offsets.numel():
        return None
    last = bool(with_defaults(node, 3, False, 0, False, None, False)[7])
    count, bags = math.prod(shape_of(node.args[1])), offsets.numel() - last
    size = count // bags if bags and count % bags == 0 else 0
    expected = torch.arange(bags + last, dtype=offsets.dtype) * size
    return size if size and torch.equal(offsets, expected) else None


def _bags(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    sample_weights: Tensor | None = None,
    include_last: bool = False,
    padding: int | None = None,
    *,
    size: int | None,
) -> tuple[Tensor]:
    """What the operator computes, from its own arguments; `size` as `_equal_size` says."""
    embedded = aten.embedding.default(weight, indices)
    kept = aten.ne.Scalar(indices, padding) if padding is not None and padding >= 0 else None
    if size is not None and kept is None:
        return (_of_equal_size(embedded, size, mode, sample_weights),)
    member = _members(indices, offsets, include_last)
    member = member if kept is None else aten.logical_and.default(member, kept.unsqueeze(0))
    factors = aten._to_copy.default(member, dtype=weight.dtype)
    count = factors.sum(1, keepdim=True)
    if mode == _MAX:
        spread = embedded.unsqueeze(0) + (1.0 - factors).unsqueeze(-1) * _LOWEST
        return (spread.amax(1) * count.clamp(max=1.0),)
    factors = factors if sample_weights is None else factors * sample_weights.unsqueeze(0)
    total = torch.matmul(factors, embedded)
    return (total / count.clamp(min=1.0) if mode == _MEAN else total,)


def _of_equal_size(embedded: Tensor, size: int, mode: int, sample_weights: Tensor | None) -> Tensor:
    if sample_weights is not None:
        embedded = embedded * sample_weights.unsqueeze(1)
    bags = embedded.reshape(-1, size, embedded.shape[-1])
    return bags.amax(1) if mode == _MAX else bags.mean(1) if mode == _MEAN else bags.sum(1)


def _members(indices: Tensor, offsets: Tensor, include_last: bool) -> Tensor:
    """bool, shape (bags, indices): which index is in which bag."""
    places = torch.arange(indices.shape[0], dtype=offsets.dtype)
    begins = offsets[:-1] if include_last else offsets
    begun = places.unsqueeze(0) >= begins.unsqueeze(1)
    if include_last:
        return torch.logical_and(begun, places.unsqueeze(0) < offsets[1:].unsqueeze(1))
    later = torch.cat([begun[1:], torch.zeros_like(begun[:1])])  # what is in a later bag has begun that one too
    return torch.logical_and(begun, torch.logical_not(later))
