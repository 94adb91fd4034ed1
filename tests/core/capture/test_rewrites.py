"""Each rewrite of the table in the facts: the op that made a converter stumble is gone, the numbers are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.capture import CapturedModel, capture
from deploykit.capture.capture import from_traced
from deploykit.capture.sources import resolve
from deploykit.capture.trace import trace_module
from deploykit.testing.models import seeded


class Of(nn.Module):
    """A module around a function, with a weight and a bias."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        return self.function(self, x, *more)


def captured_of(function: Callable[..., Any], *inputs: Tensor) -> CapturedModel:
    """Capture (which checks the outputs against the function) on the inputs, by default one of shape (2, 3, 8)."""
    with seeded(0):
        return capture(Of(function), example_inputs=inputs or (torch.randn(2, 3, 8),))


def ops(captured: CapturedModel) -> list[str]:
    return [o.op.removeprefix("aten.") for o in captured.origins.values()]


CASES: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "matmul": (lambda m, x: x @ m.weight, ["linear.default"]),
    "matmul and bias": (lambda m, x: x @ m.weight + m.bias, ["linear.default"]),
    "bias first": (lambda m, x: m.bias + x @ m.weight, ["linear.default"]),
    "addmm between reshapes": (
        lambda m, x: torch.addmm(m.bias, x.view(-1, 8), m.weight).view(2, 3, 6),
        ["linear.default"],
    ),
    "addmm with factors": (
        lambda m, x: torch.addmm(m.bias, x[0], m.weight, alpha=2, beta=3),
        ["select.int", "linear.default", "mul.Tensor", "add.Tensor"],
    ),
    "transposed weight": (lambda m, x: F.linear(x, m.weight.t()), ["linear.default"]),
    "bmm": (lambda m, x: torch.bmm(x, x.transpose(-1, -2)), ["permute.default", "matmul.default"]),
    "convolution along time": (
        lambda m, x: torch.conv_tbc(x, m.weight[None].expand(2, -1, -1), m.bias, 1),
        ["permute.default", "conv1d.default", "permute.default"],
    ),
    "einsum": (lambda m, x: torch.einsum("bij,bkj->bik", x, x), ["permute.default", "matmul.default"]),
    "select": (lambda m, x: x[:, -1], ["select.int"]),
    "slices": (lambda m, x: x[:, -2:, :-1], ["slice.Tensor", "slice.Tensor"]),
    "whole slice": (lambda m, x: x[:, :100, 0:], []),
    "cat": (lambda m, x: torch.cat([x, x], -1), ["cat.default"]),
    "stack": (lambda m, x: torch.stack([x, x], -1), ["stack.default"]),
    "softmax": (lambda m, x: x.softmax(-1), ["softmax.int"]),
    "unsqueeze": (lambda m, x: x.unsqueeze(-1), ["unsqueeze.default"]),
    "squeeze": (lambda m, x: x[..., :1].squeeze(-1), ["slice.Tensor", "reshape.default"]),
    "mean": (lambda m, x: x.mean((-1, -2)), ["mean.dim"]),
    "transposes cancel": (lambda m, x: x.transpose(-1, 1).permute(0, 2, 1) + 1, ["add.Tensor"]),
    "flatten": (lambda m, x: x.flatten(1), ["reshape.default"]),
    "view": (lambda m, x: x.view(2, -1), ["reshape.default"]),
    "chunk": (
        lambda m, x: torch.mul(*x.chunk(2, -1)),
        ["slice.Tensor", "slice.Tensor", "mul.Tensor"],
    ),
    "split": (lambda m, x: x.split([1, 2], 1)[1], ["slice.Tensor"]),
    "unbind": (lambda m, x: x.unbind(-2)[2], ["select.int"]),
    "narrow": (lambda m, x: x.narrow(-1, 2, 3), ["slice.Tensor"]),
    "diff": (lambda m, x: torch.diff(x, dim=-1), ["slice.Tensor", "slice.Tensor", "sub.Tensor"]),
    "diff of bools": (
        lambda m, x: torch.diff(x > 0, dim=-1),
        ["gt.Scalar", "slice.Tensor", "slice.Tensor", "ne.Tensor"],
    ),
    "diff with prepend": (
        lambda m, x: torch.diff(x, dim=1, prepend=x[:, :1]),
        ["slice.Tensor", "cat.default", "slice.Tensor", "slice.Tensor", "sub.Tensor"],
    ),
    "where with scalars": (lambda m, x: torch.where(x > 0, 1.0, -1.0), ["gt.Scalar", "where.self"]),
    "where with a scalar": (lambda m, x: torch.where(x > 0, x, 0.0), ["gt.Scalar", "where.self"]),
    "and": (lambda m, x: (x > 0) & (x < 1), ["gt.Scalar", "lt.Scalar", "logical_and.default"]),
    "not": (lambda m, x: ~(x > 0), ["gt.Scalar", "logical_not.default"]),
    "new_ones": (lambda m, x: x * x.new_ones(8) * 2, ["mul.Tensor"]),
    "in place": (
        lambda m, x: x.add(1).relu_().mul_(2).clamp_(0, 3),
        ["add.Tensor", "relu.default", "mul.Tensor", "clamp.default"],
    ),
    "dropout and friends": (
        lambda m, x: F.dropout(x, 0.5, m.training).clone().contiguous().detach() + 1,
        ["add.Tensor"],
    ),
    "casts to the same": (lambda m, x: x.to(torch.float32).float().type_as(m.bias) + 1, ["add.Tensor"]),
    "cast": (lambda m, x: x.to(torch.int32), ["_to_copy.default"]),
    "pool": (lambda m, x: F.max_pool1d(x, 2), ["max_pool1d.default"]),
    "empty pad": (lambda m, x: F.pad(x, (0, 0, 0, 0)) + 1, ["add.Tensor"]),
    "gelu": (lambda m, x: F.gelu(x, approximate="tanh"), ["gelu.default"]),
    "no grad and autocast regions": (lambda m, x: _regions(x), ["mul.Tensor", "add.Tensor"]),
    "index by ranges": (
        lambda m, x: x[torch.arange(2)[:, None, None], torch.arange(3)[:, None], torch.arange(8)] + 1,
        ["add.Tensor"],
    ),
}


def _regions(x: Tensor) -> Tensor:
    with torch.no_grad():
        x = x * 2
    with torch.autocast("cpu", enabled=False):
        return x + 1


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name: str) -> None:
    function, expected = CASES[name]
    assert ops(captured_of(function)) == expected


@pytest.mark.parametrize(
    "equation",
    [
        ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("bijk,lkbm->mlibj", (2, 3, 4, 5), (6, 5, 2, 3)),
        ("nctv,vw->nctw", (2, 3, 4, 5), (5, 6)),
        ("ij,ij->", (3, 4), (3, 4)),
        ("i,j->ij", (3,), (4,)),
        ("ii,ij->j", (3, 3), (3, 4)),
        ("...i,ij->...j", (2, 3, 4), (4, 5)),
    ],
)
def test_einsum_becomes_matmul(equation: tuple[Any, ...]) -> None:
    text, *shapes = equation
    captured = captured_of(lambda m, a, b: torch.einsum(text, a, b), *(torch.randn(shape) for shape in shapes))
    assert "einsum.default" not in ops(captured)


def test_index_in_another_order_stays_an_index() -> None:
    captured = captured_of(lambda m, x: x[torch.arange(2), torch.arange(2), torch.arange(2)] + 1)
    assert ops(captured) == ["index.Tensor", "add.Tensor"]


def test_pool_stride_is_written_out() -> None:
    captured = captured_of(lambda m, x: F.max_pool2d(x, 2), torch.randn(1, 3, 8, 8))
    pool = next(n for n in captured.graph_module.graph.nodes if n.op == "call_function")
    assert pool.args[1:3] == ([2, 2], [2, 2])


@pytest.mark.parametrize(
    ("pool", "window"),
    [
        (nn.AvgPool2d(2560, ceil_mode=True), [7, 9]),  # the head of Hugging Face's EfficientNet
        (nn.AvgPool2d((20, 3), (20, 2), (1, 1), ceil_mode=True), [9, 3]),
        (nn.AvgPool2d((20, 3), (20, 2), (1, 1), ceil_mode=True, count_include_pad=False), [9, 3]),
        (nn.MaxPool2d((3, 40), (2, 50), ceil_mode=True), [3, 9]),
        (nn.MaxPool2d(3), [3, 3]),
    ],
)
def test_a_window_is_no_larger_than_what_it_slides_over(pool: nn.Module, window: list[int]) -> None:
    """PyTorch admits larger ones with `ceil_mode`; capture itself checks that the values stay."""
    captured = captured_of(lambda m, x: pool(x), torch.randn(1, 3, 7, 9))
    node = next(n for n in captured.graph_module.graph.nodes if n.op == "call_function")
    assert node.args[1] == window


def test_writes_through_views_are_functionalised() -> None:
    def write(m: nn.Module, x: Tensor) -> Tensor:
        y = x * 1.5
        y[:, 0] = 3
        y[..., 1:].add_(1)
        return y

    captured = captured_of(write)
    assert not any(name.split(".")[0].endswith("_") for name in ops(captured))


def test_a_view_read_after_a_write_sees_it() -> None:
    def write(m: nn.Module, x: Tensor) -> Tensor:
        y = x + 1
        view = y.flatten()
        y.mul_(2)
        return view + 1

    captured_of(write)  # checked against eager by capture itself


def attention(m: nn.Module, q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, *mask, **options)


Q, KV = torch.randn(1, 4, 5, 8), torch.randn(1, 4, 5, 8)
ATTENTION = {
    "plain": ((Q, KV, KV), {}),
    "causal": ((Q, KV, KV), {"is_causal": True}),
    "bool mask": ((Q, KV, KV, torch.rand(1, 1, 5, 5) > 0.3), {}),
    "float mask": ((Q, KV, KV, torch.zeros(1, 1, 5, 5).masked_fill(torch.eye(5) > 0, -torch.inf)), {}),
    "scale": ((Q, KV, KV), {"scale": 0.2}),
    "grouped queries": ((Q, KV[:, :2], KV[:, :2]), {"enable_gqa": True}),
    "three axes": ((Q[0], KV[0], KV[0]), {}),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_expands_to_products_that_can_be_quantised(name: str) -> None:
    inputs, options = ATTENTION[name]
    captured = captured_of(lambda m, *xs: attention(m, *xs, **options), *inputs)
    found = ops(captured)
    assert found.count("matmul.default") == 2
    assert found.count("softmax.int") == 1
    assert not any("isnan" in op or "scaled_dot" in op for op in found)


def test_masks_are_finite() -> None:
    captured = captured_of(lambda m, q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), Q, KV)
    assert all(torch.isfinite(b).all() for b in captured.graph_module.buffers())
    assert min(b.min().item() for b in captured.graph_module.buffers()) == -30000


def own_attention(m: nn.Module, x: Tensor, mask: Tensor, how: str) -> Tensor:
    scores = x @ x.transpose(1, 2)
    if how == "masked_fill":
        scores = scores.masked_fill(mask == 0, -torch.inf)
    elif how == "where":
        scores = torch.where(mask.bool(), scores, torch.finfo(torch.float32).min)
    else:
        scores = scores + (1 - mask.float()) * -1e9
    return scores.softmax(-1) @ x


@pytest.mark.parametrize("how", ["masked_fill", "where", "arithmetic"])
def test_masks_of_the_models_own_making_are_finite(how: str) -> None:
    captured = captured_of(lambda m, *xs: own_attention(m, *xs, how=how), Q[0], torch.eye(5).long())
    numbers = [a for n in captured.graph_module.graph.nodes for a in n.args if isinstance(a, float)]
    assert min([*numbers, *(b.min().item() for b in captured.graph_module.buffers())]) == -30000


def test_large_negative_numbers_elsewhere_are_kept() -> None:
    captured = captured_of(lambda m, x: x.masked_fill(x > 0, -torch.inf).amax(-1).softmax(-1))
    assert -torch.inf in next(n for n in captured.graph_module.graph.nodes if "masked_fill" in n.name).args


def test_attention_can_stay_whole() -> None:
    module = Of(lambda m, q, k: F.scaled_dot_product_attention(q, k, k))
    traced = trace_module(resolve(module, (Q, KV)), dynamic_batch=False, dynamic_shapes=None)
    assert ops(from_traced(traced, expand_attention=False)) == ["scaled_dot_product_attention.default"]


def test_equal_masks_of_all_layers_are_one() -> None:
    def layers(m: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
        for _ in range(3):
            x = F.scaled_dot_product_attention(x, x, x, keep[:, None, None, :])
        return x

    captured = captured_of(layers, Q, torch.ones(1, 5, dtype=torch.bool))
    assert ops(captured).count("where.self") == 1


class BatchedSums(nn.Module):
    """`beta` 0 leaves out what is added, as PyTorch defines, even where it is infinite."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        added, none = torch.ones(3, 5), torch.full((5,), torch.inf)
        summed = torch.addbmm(added, left, right, beta=0.5, alpha=2.0) + torch.addbmm(none, left, right, beta=0)
        return torch.baddbmm(summed, left, right, beta=0.5, alpha=3.0)


def test_batched_sums_are_plain_products() -> None:
    """Else no target quantizes them, and some have no form for them at all."""
    model, inputs = BatchedSums().eval(), (torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    captured = capture(model, example_inputs=inputs)
    targets = [node.target for node in captured.graph_module.graph.nodes]
    assert torch.ops.aten.matmul.default in targets  # once: all three have the same product
    assert not {torch.ops.aten.addbmm.default, torch.ops.aten.baddbmm.default} & set(targets)
    (found,) = captured.graph_module(*inputs)
    assert torch.allclose(found, model(*inputs), atol=1e-5)
