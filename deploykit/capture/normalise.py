"""Normalise a captured graph once, so that no target has to: the list of passes, in order.

Every pass takes an `Editor` and leaves a valid graph that computes the same. What stays high level on purpose: conv,
linear, layer_norm, group_norm, gelu, silu, hardswish, hardsigmoid, hardtanh, softmax, lstm (but for one with a
projection) and gru, but not their cells.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from deploykit.capture import (
    finish,
    finite_masks,
    fold,
    fold_dynamic,
    functionalise,
    recurrent_cells,
    rewrite_attention,
    rewrite_bags,
    rewrite_cells,
    rewrite_complex,
    rewrite_decomposed,
    rewrite_einsum,
    rewrite_matmul,
    rewrite_ops,
    rewrite_views,
)
from deploykit.capture.editor import Editor

Pass = Callable[[Editor], None]


def passes(*, expand_attention: bool = True, blind_queries: bool = False) -> tuple[Pass, ...]:
    """The passes in order.

    Args:
        expand_attention: False keeps scaled_dot_product_attention as one op.
        blind_queries: keep what PyTorch computes for queries whose mask hides every key (zeros, or NaN).
    """
    attention = rewrite_attention.expand_attention_exactly if blind_queries else rewrite_attention.expand_attention
    return (
        rewrite_ops.positional_arguments,
        functionalise.functionalise,
        recurrent_cells.unroll_projections,
        rewrite_views.erase_identities,
        rewrite_views.positive_dims,
        rewrite_views.plain_slices,
        rewrite_decomposed.recompose,
        rewrite_einsum.rewrite_einsum,
        rewrite_ops.expand_composites,
        rewrite_complex.lower_complex,
        rewrite_ops.distances,
        rewrite_cells.expand_cells,
        *((attention,) if expand_attention else ()),
        rewrite_ops.plain_ops,
        rewrite_views.erase_identities,
        rewrite_views.positive_dims,
        rewrite_views.plain_reshapes,
        rewrite_views.plain_transposes,
        fold.merge_equal,
        fold.fold_constants,
        rewrite_bags.expand_embedding_bags,
        fold_dynamic.fold_batch_constants,
        *(() if blind_queries else (finite_masks.finite_masks,)),
        fold.drop_neutral,
        rewrite_views.index_by_arange,
        rewrite_matmul.constant_matmul_to_linear,
        fold.fold_batch_norms,
        rewrite_ops.explicit_pools,
        finish.finish,
    )


def normalise(editor: Editor, *, expand_attention: bool = True) -> fx.GraphModule:
    """Run every pass; the finished graph module."""
    for each in passes(expand_attention=expand_attention):
        each(editor)
    return editor.module()
