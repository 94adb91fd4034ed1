"""MIL matrix products: `linear`, `matmul`, `einsum`, and `scaled_dot_product_attention`."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.operation import Op, rounds


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., D_in), weight (D_out, D_in) -> (..., D_out); mixed types meet in the wider one."""
    x, weight = _alike(x, weight)
    addend = None if bias is None else bias.to(x.dtype)
    if x.is_floating_point():
        return F.linear(x, weight, addend)
    product = torch.matmul(x, weight.T)
    return product if addend is None else product + addend


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    common = torch.promote_types(x.dtype, y.dtype)
    return x.to(common), y.to(common)


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """NumPy's matmul with optional transposition of the last two axes; no effect on rank 1."""
    x, y = _alike(x, y)
    left = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    right = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    return torch.matmul(left, right)


def _einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *values)


def _scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V; a bool mask keeps the elements where it is true."""
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        kept = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if kept else scores + attn_mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)


OPS: Final[dict[str, Op]] = {
    "einsum": rounds(_einsum),
    "linear": rounds(_linear),
    "matmul": rounds(_matmul),
    "scaled_dot_product_attention": rounds(_scaled_dot_product_attention),
}
"""Rules of this family, by MIL name."""
