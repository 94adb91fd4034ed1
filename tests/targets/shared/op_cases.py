"""One-line models for the operators that lowerings translate, each with its inputs; shared by the targets' tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Apply(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


@cache
def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded normal numbers; cached, so that a weight drawn inside a model is a constant when it is exported."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = draw(2, 4, 6, 6), draw(2, 4, 6, 6, seed=1)
M, N = draw(3, 5), draw(3, 5, seed=1)
POSITIVE = draw(3, 5).abs() + 0.1
INTS = torch.tensor([[7, -7, 3], [-5, 5, 9]])
IDS = torch.tensor([[0, 2, 1], [3, 1, 0]])
MASK = M > 0
W = draw(8, 4, 3, 3, seed=2) / 6
B8 = draw(8, seed=3)

CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    # arithmetic
    "add": (lambda a, b: torch.add(a, b, alpha=2), (M, N)),
    "add_int_scalar": (lambda a: a + 1, (M,)),
    "add_bool": (lambda a, b: a + b, (MASK, N > 0)),
    "int_plus_float": (lambda a: a + 0.5, (INTS,)),
    "sub": (lambda a, b: torch.sub(a, b, alpha=3), (M, N)),
    "rsub": (lambda a: 1 - a, (M,)),
    "mul_mask": (lambda a, b: a * b, (M, MASK)),
    "div": (lambda a, b: a / b, (M, POSITIVE)),
    "div_ints": (lambda a: a / 2, (INTS,)),
    "div_floor": (lambda a, b: torch.div(a, b, rounding_mode="floor"), (M, POSITIVE)),
    "div_trunc": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), (M * 9, POSITIVE)),
    "floor_divide_ints": (lambda a: a // 2, (INTS,)),
    "div_trunc_ints": (lambda a: torch.div(a, 2, rounding_mode="trunc"), (INTS,)),
    "remainder": (lambda a: a % 0.7, (M,)),
    "remainder_ints": (lambda a: a % 3, (INTS,)),
    "fmod": (lambda a: torch.fmod(a, 0.7), (M,)),
    "pow": (lambda a: a**3, (M,)),
    "pow_tensor": (lambda a, b: a**b, (POSITIVE, N)),
    "scalar_pow": (lambda a: 2.0**a, (M,)),
    "maximum": (torch.maximum, (M, N)),
    "minimum": (torch.minimum, (M, N)),
    "clamp": (lambda a: a.clamp(-0.5, 0.5), (M,)),
    "clamp_min": (lambda a: a.clamp(min=0.1), (M,)),
    "clamp_tensor": (lambda a, b: torch.clamp(a, min=b), (M, N)),
    "unary": (
        lambda a: a.abs() + a.neg() + a.sign() + a.exp() + a.sin() + a.cos() + a.tanh() + a.floor() + a.ceil(), (M,),
    ),
    "unary_positive": (lambda a: a.log() + a.sqrt() + a.rsqrt() + a.reciprocal() + a.log1p() + a.log2(), (POSITIVE,)),
    "erf_round_trunc": (lambda a: a.erf() + (a * 3).round() + (a * 3).trunc(), (M,)),
    "expm1_exp2_log10": (lambda a: a.expm1() + a.exp2() + a.log10(), (POSITIVE,)),
    "square": (torch.square, (M,)),
    "compare": (lambda a, b: (a > b).int() + (a == b).int() + (a != b).int() + (a <= b).int(), (M, N)),
    "compare_mixed": (lambda a: (a >= 0.5), (INTS,)),
    "logic": (lambda a, b: torch.logical_and(a, b) | torch.logical_xor(a, ~b), (MASK, N > 0)),
    "bitwise_ints": (lambda a: (a & 3) | 8, (INTS,)),
    "where": (torch.where, (MASK, M, N)),
    "where_scalar": (lambda m, a: torch.where(m, a, 0.0), (MASK, M)),
    "masked_fill": (lambda a, m: a.masked_fill(m, -1e4), (M, MASK)),
    "addcmul": (lambda a, b: torch.addcmul(a, a, b, value=0.5), (M, N)),
    "lerp": (lambda a, b: torch.lerp(a, b, 0.3), (M, N)),
    # activation
    "relu": (F.relu, (M,)),
    "relu6": (F.relu6, (M * 5,)),
    "hard": (lambda a: F.hardswish(a) + F.hardsigmoid(a) + F.hardtanh(a), (M * 3,)),
    "silu_mish": (lambda a: F.silu(a) + F.mish(a), (M,)),
    "gelu": (F.gelu, (M,)),
    "gelu_tanh": (lambda a: F.gelu(a, approximate="tanh"), (M,)),
    "leaky_elu": (lambda a: F.leaky_relu(a, 0.1) + F.elu(a, 0.7) + F.selu(a) + F.celu(a, 0.9), (M,)),
    "prelu": (lambda a: F.prelu(a, torch.tensor([0.1, 0.2, 0.3, 0.4])), (X,)),
    "softplus": (lambda a: F.softplus(a, beta=2) + F.logsigmoid(a), (M,)),
    "glu": (lambda a: F.glu(a, 1), (X,)),
    "threshold_shrink": (lambda a: F.threshold(a, 0.2, 7.0) + F.softshrink(a, 0.3) + F.hardshrink(a, 0.3), (M,)),
    "softmax": (lambda a: F.softmax(a, -1) + F.log_softmax(a, 0), (M,)),
    "softsign": (F.softsign, (M,)),
    # linear
    "linear2d": (lambda a: F.linear(a, draw(7, 5, seed=4), draw(7, seed=5)), (M,)),
    "linear3d": (lambda a: F.linear(a, draw(7, 6, seed=4), draw(7, seed=5)), (X,)),
    "linear_without_bias": (lambda a: F.linear(a, draw(7, 6, seed=4)), (X,)),
    "matmul": (lambda a, b: a @ b.transpose(-1, -2), (X, Y)),
    "bmm": (torch.bmm, (draw(2, 3, 4), draw(2, 4, 5))),
    "addmm": (lambda a, b: torch.addmm(a, b, draw(5, 5), beta=0.5, alpha=2.0), (M, N)),
    "baddbmm": (
        lambda a, b: torch.baddbmm(torch.ones(2, 3, 5), a, b, beta=0.5, alpha=2), (draw(2, 3, 4), draw(2, 4, 5)),
    ),
    "einsum": (lambda a, b: torch.einsum("bchw,bcxw->bhx", a, b), (X, Y)),
    "attention": (F.scaled_dot_product_attention, (draw(2, 3, 4, 8), draw(2, 3, 5, 8), draw(2, 3, 5, 8))),
    "attention_causal": (
        lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), (draw(2, 3, 4, 8), draw(2, 3, 4, 8)),
    ),
    "attention_mask": (
        lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m),
        (draw(2, 3, 4, 8), torch.ones(4, 4, dtype=torch.bool).tril()),
    ),
    # convolution and pooling
    "conv2d": (lambda a: F.conv2d(a, W, B8, stride=2, padding=1), (X,)),
    "conv2d_grouped_dilated": (lambda a: F.conv2d(a, W[:, :1], None, padding=2, dilation=2, groups=4), (X,)),
    "conv2d_same": (lambda a: F.conv2d(a, draw(8, 4, 3, 5), padding="same"), (X,)),
    "conv2d_unbatched": (lambda a: F.conv2d(a, W), (X[0],)),
    "conv1d": (lambda a: F.conv1d(a, draw(8, 4, 3), B8, padding=1), (draw(2, 4, 9),)),
    "conv3d": (lambda a: F.conv3d(a, draw(8, 4, 2, 2, 2), B8), (draw(1, 4, 4, 5, 6),)),
    "conv_transpose2d": (
        lambda a: F.conv_transpose2d(a, draw(4, 6, 3, 3), draw(6), stride=2, padding=1, output_padding=1), (X,),
    ),
    "conv_transpose1d": (lambda a: F.conv_transpose1d(a, draw(4, 3, 3), groups=2), (draw(2, 4, 9),)),
    "max_pool": (lambda a: F.max_pool2d(a, 3, 2, 1), (X,)),
    "max_pool_without_stride": (lambda a: F.max_pool2d(a, 2), (X,)),
    "max_pool_ceil": (lambda a: F.max_pool2d(a, 3, 2, ceil_mode=True), (X,)),
    "avg_pool": (lambda a: F.avg_pool2d(a, 3, 2, 1, count_include_pad=False) + F.avg_pool2d(a, 3, 2, 1), (X,)),
    "pool1d": (lambda a: F.max_pool1d(a, 3, 2) + F.avg_pool1d(a, 3, 2), (draw(2, 4, 9),)),
    "global_pool": (lambda a: F.adaptive_avg_pool2d(a, 1) + F.adaptive_max_pool2d(a, 1), (X,)),
    "adaptive_pool": (lambda a: F.adaptive_avg_pool2d(a, (3, 2)), (X,)),
    "adaptive_pool_same": (lambda a: F.adaptive_avg_pool2d(a, (6, 6)), (X,)),
    # normalisation
    "layer_norm": (lambda a: F.layer_norm(a, (5,), draw(5), draw(5, seed=9)), (M,)),
    "layer_norm_plain": (lambda a: F.layer_norm(a, (6, 6)), (X,)),
    "group_norm": (lambda a: F.group_norm(a, 2, draw(4), draw(4, seed=9)), (X,)),
    "instance_norm": (F.instance_norm, (X,)),
    "batch_norm": (lambda a: F.batch_norm(a, draw(4), draw(4).abs() + 0.5, draw(4, seed=7), draw(4, seed=8)), (X,)),
    "rms_norm": (lambda a: F.rms_norm(a, (5,), draw(5)), (M,)),
    # shape
    "reshape": (lambda a: a.view(2, -1).reshape(4, 4, 18), (X,)),
    "flatten": (lambda a: a.flatten(1), (X,)),
    "permute": (lambda a: a.permute(0, 2, -1, 1).transpose(1, -1), (X,)),
    "t": (lambda a: a.t(), (M,)),
    "squeeze": (lambda a: a.unsqueeze(-1).unsqueeze(0).squeeze(0).squeeze(-1), (M,)),
    "expand": (lambda a: a[:, :1].expand(2, 4, 6, 6) + a.unsqueeze(0).expand(3, -1, -1, -1, -1).sum(0), (X,)),
    "slice": (lambda a: a[:, 1:3, ::2, -3:], (X,)),
    "select": (lambda a: a[:, -1, 2], (X,)),
    "narrow": (lambda a: a.narrow(1, 1, 2), (X,)),
    "cat_stack": (lambda a, b: torch.cat([a, torch.stack([a, b], 1).sum(1)], -1), (M, N)),
    "split": (lambda a: a.split([1, 3], 1)[1] + a.split(2, 1)[1].sum() + a.chunk(2, 2)[0].sum(), (X,)),
    "unbind": (lambda a: a.unbind(1)[2], (X,)),
    "repeat": (lambda a: a.repeat(2, 1, 3), (M,)),
    "flip_roll": (lambda a: a.flip([2, 3]) + a.roll((1, -2), (2, 3)), (X,)),
    "pad": (lambda a: F.pad(a, (1, 2, 0, 1), value=3.0), (X,)),
    "pad_reflect": (lambda a: F.pad(a, (1, 2, 0, 1), mode="reflect"), (X,)),
    "pad_replicate": (lambda a: F.pad(a, (1, 2, 0, 1), mode="replicate"), (X,)),
    "crop": (lambda a: F.pad(a, (-1, -1)), (X,)),
    "pixel_shuffle": (lambda a: F.pixel_unshuffle(F.pixel_shuffle(a, 2), 3), (X,)),
    "cast": (lambda a: a.to(torch.int64).float() + (a > 0).float(), (M * 3,)),
    # reduction
    "reduce": (lambda a: a.sum(-1) + a.mean((1, 2)).sum() + a.amax(-1) + a.amin(-1), (X,)),
    "reduce_all": (lambda a: a.sum() + a.mean() + a.max() + a.min(), (X,)),
    "sum_of_bools": (lambda a: a.sum(-1), (MASK,)),
    "prod": (lambda a: a.prod(1), (M,)),
    "var_std": (lambda a: a.var(1) + a.std((1,), correction=0), (M,)),
    "any_all": (lambda a: a.any(1) | a.all(), (MASK,)),
    "argmax": (lambda a: a.argmax(-1) + a.argmin(), (M,)),
    "max_dim": (lambda a: a.max(1)[0] + a.max(1)[1] + a.min(1, keepdim=True)[0], (M,)),
    "topk": (lambda a: a.topk(2, -1), (M,)),
    "sort": (lambda a: a.sort(1, descending=True)[0], (M,)),
    "cumsum": (lambda a: a.cumsum(1), (M,)),
    "logsumexp": (lambda a: a.logsumexp(1), (M,)),
    "norms": (lambda a: a.norm(dim=1) + a.norm(p=1, dim=1) + a.norm(p=3, dim=1), (M,)),
    "normalize": (lambda a: F.normalize(a, dim=1), (M,)),
    # creation and indexing
    "full": (lambda a: a + torch.full((3, 5), 2.0) + torch.zeros_like(a) + torch.ones(5), (M,)),
    "arange": (lambda a: a + torch.arange(5) + torch.arange(1, 11, 2), (M,)),
    "triangle": (lambda a: a.triu(1) + a.tril(), (draw(4, 4),)),
    "embedding": (lambda i: F.embedding(i, draw(4, 3)), (IDS,)),
    "gather": (lambda a, i: a.gather(1, i), (draw(2, 4), IDS)),
    "scatter": (lambda i: torch.zeros(2, 4).scatter(1, i, 1.0), (IDS[:, :2],)),
    "index": (lambda a, i: a[:, i], (draw(2, 4, 3), IDS)),
    "index_two": (lambda a: a[:, torch.tensor([0, 1]), torch.tensor([3, 2])], (X,)),
    "index_grid": (lambda a: a[torch.tensor([[0], [1]]), torch.tensor([1, 3])], (X,)),
    "index_select": (lambda a: a.index_select(1, torch.tensor([3, 0])), (X,)),
    "one_hot": (lambda i: F.one_hot(i, 5), (IDS,)),
    "write_slice": (lambda a: torch.slice_scatter(a, torch.zeros(2, 2, 6, 6), 1, 1, 3), (X,)),
    "write_select": (lambda a: torch.select_scatter(a, torch.zeros(2, 6, 6), 1, -1), (X,)),
    # resize
    "nearest": (lambda a: F.interpolate(a, scale_factor=2), (X,)),
    "nearest_size": (lambda a: F.interpolate(a, size=(9, 7)), (X,)),
    "nearest_exact": (lambda a: F.interpolate(a, size=(9, 7), mode="nearest-exact"), (X,)),
    "bilinear": (lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"), (X,)),
    "bilinear_aligned": (lambda a: F.interpolate(a, size=(9, 11), mode="bilinear", align_corners=True), (X,)),
    "bicubic": (lambda a: F.interpolate(a, size=(9, 11), mode="bicubic"), (X,)),
    "linear_resize": (lambda a: F.interpolate(a, scale_factor=2, mode="linear"), (draw(2, 4, 9),)),
    "grid_sample": (lambda a, g: F.grid_sample(a, g, align_corners=False), (X, draw(2, 3, 3, 2).tanh())),
    # left to PyTorch's exporter, one operator at a time
    "unfold": (lambda a: F.unfold(a, 3), (X,)),
    "index_put": (lambda a: torch.index_put(a, (torch.tensor([0, 1]),), torch.tensor(1.0)), (M,)),
    "adaptive_uneven": (lambda a: F.adaptive_avg_pool2d(a, (4, 4)), (X,)),
}  # fmt: skip
