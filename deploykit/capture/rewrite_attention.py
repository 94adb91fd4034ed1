"""scaled_dot_product_attention -> matmul, mask, softmax, matmul, so that both products can be quantised.

softmax(q k^T * scale + mask) v, with the scale on q (the smaller tensor). Masks are finite: -30000 rather than -inf
underflows to a weight of exactly 0 in float32 and float16, and leaves no infinity for a quantiser to meet. A query that
may look at nothing gets a mean by its scores. PyTorch gives it zeros where its mask is -inf or a truth value, and the
plain mean where the mask is finite, in which its scores vanish; `expand_attention_exactly` gives both.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import fx

from deploykit.capture.editor import Call, Editor, is_static, rank_of, shape_of, with_defaults

aten = torch.ops.aten

MASKED = -30000.0
"""Added to the scores of masked positions."""


def expand_attention(editor: Editor) -> None:
    """Expand every attention op; a causal one over a dynamic length stays whole."""
    _expand(editor, exactly=False)


def expand_attention_exactly(editor: Editor) -> None:
    """Do as `expand_attention` does, for models with queries that may look at nothing: a few small ops for each."""
    _expand(editor, exactly=True)


def _expand(editor: Editor, *, exactly: bool) -> None:
    for node in editor.calls(aten.scaled_dot_product_attention.default):
        query, key, value, mask, _, causal = with_defaults(node, 3, None, 0.0, False)
        lengths = (shape_of(query)[-2], shape_of(key)[-2])
        if causal and not is_static(lengths):
            continue
        if node.kwargs.get("enable_gqa", False):
            key, value = (_repeated_heads(editor, node, query, x) for x in (key, value))
        scores = _scores(editor, node, query, key)
        biases = _biases(editor, node, mask, lengths if causal else None)
        seen = _truth(editor, node, aten.gt.Scalar, _most(editor, node, biases), MASKED) if exactly and biases else None
        if seen is not None:
            scores = editor.call(aten.mul.Tensor, scores, seen, before=node)
        for bias in biases:
            scores = editor.call(aten.add.Tensor, scores, bias, before=node)
        weights = editor.call(aten.softmax.int, scores, rank_of(scores) - 1, before=node)
        if seen is not None:
            weights = editor.call(aten.mul.Tensor, weights, _looks(editor, node, mask, seen), before=node)
        editor.swap(node, editor.call(aten.matmul.default, weights, value, before=node))


def _scores(editor: Editor, node: Call, query: Call, key: Call) -> Call:
    scale = node.kwargs.get("scale")
    scale = 1.0 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    order = list(range(rank_of(key)))
    order[-2:] = order[-1], order[-2]
    scaled = editor.call(aten.mul.Tensor, query, scale, before=node)
    turned = editor.call(aten.permute.default, key, order, before=node)
    return editor.call(aten.matmul.default, scaled, turned, before=node)


def _biases(editor: Editor, node: Call, mask: Any, causal: tuple[int, int] | None) -> list[Call]:
    """The additive masks of a call: the user's, and the triangle of a causal one."""
    biases = []
    if isinstance(mask, fx.Node) and mask.meta["val"].dtype == torch.bool:
        zero, masked = (editor.call(aten.full.default, [], x, before=node) for x in (0.0, MASKED))
        biases.append(editor.call(aten.where.self, mask, zero, masked, before=node))
    elif isinstance(mask, fx.Node):
        biases.append(editor.call(aten.clamp_min.default, mask, MASKED, before=node))
    if causal is not None:
        full = editor.call(aten.full.default, list(causal), MASKED, before=node)
        biases.append(editor.call(aten.triu.default, full, 1, before=node))
    return biases


def _most(editor: Editor, node: Call, biases: list[Call]) -> Call:
    """The largest of all masks that each query has for a key."""
    total = reduce(lambda one, other: editor.call(aten.add.Tensor, one, other, before=node), biases)
    return editor.call(aten.amax.default, total, [-1], True, before=node)


def _looks(editor: Editor, node: Call, mask: Any, seen: Call) -> Call:
    """0 for queries that get zeros, whose mask is infinite or a truth value for every key; 1 for the others."""
    if not isinstance(mask, fx.Node) or mask.meta["val"].dtype == torch.bool:
        return seen
    return _truth(editor, node, aten.ge.Scalar, _most(editor, node, [mask]), torch.finfo(torch.float32).min)


def _truth(editor: Editor, node: Call, compare: Any, value: Call, bound: float) -> Call:
    """1 where a comparison holds, else 0."""
    found = editor.call(compare, value, bound, before=node)
    return editor.call(aten._to_copy.default, found, dtype=torch.float32, before=node)


def _repeated_heads(editor: Editor, node: Call, query: Call, x: Call) -> Call:
    """Grouped queries: every key and value head serves query heads / heads neighbouring queries."""
    *batch, heads, length, width = shape_of(x)
    copies = shape_of(query)[-3] // heads
    if copies == 1:
        return x
    axis = rank_of(x) - 2
    grown = editor.call(aten.unsqueeze.default, x, axis, before=node)
    sizes = [-1] * (axis) + [copies, -1, -1]
    grown = editor.call(aten.expand.default, grown, sizes, before=node)
    dynamic = [size if isinstance(size, int) else -1 for size in (*batch, heads * copies, length, width)]
    return editor.call(aten.reshape.default, grown, dynamic, before=node)
