"""How many values that vary from sample to sample are multiplied into one is read from the operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="a graph is captured with PyTorch")

import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit_calibration.degrees import degrees

Function = Callable[[Tensor, Tensor], Tensor]


class Of(nn.Module):
    """A function of two linear layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.a(x), self.b(x))


def degree(function: Function) -> int:
    """Of what the function gives."""
    captured = capture(Of(function).eval(), example_inputs=(torch.randn(2, 8),))
    graph = captured.graph_module.graph
    (result,) = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    return degrees(graph)[result.name]


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda a, b: a * b, 2),
        (lambda a, b: torch.relu(a) * b, 2),
        (lambda a, b: nn.functional.silu(a) * b, 2),
        (lambda a, b: (a * b).reshape(4, 4)[:2] + 1.0, 2),
        (lambda a, b: torch.cat([a, a * b], -1), 2),
        (lambda a, b: a * a * b, 3),
        (lambda a, b: a.square() * b**2, 4),
        (lambda a, b: b + a**3, 3),
        (lambda a, b: (a * b) / 3.0, 2),
    ],
)
def test_products_and_powers_of_what_varies(function: Function, wanted: int) -> None:
    assert degree(function) == wanted


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda a, b: a + b, 1),
        (lambda a, b: 3.0 * a - b, 1),
        (lambda a, b: a * torch.sigmoid(b), 1),
        (lambda a, b: a * torch.softmax(b, -1), 1),
        (lambda a, b: a * torch.rsqrt(b.square().mean(-1, keepdim=True) + 1e-6), 1),
        (lambda a, b: a * torch.ones(8).cumsum(0), 1),
        (lambda a, b: torch.sigmoid(a * b), 0),
        (lambda a, b: (a * b).sum(-1, keepdim=True), 1),
        (lambda a, b: (a * b) @ torch.ones(8, 4), 1),
        (lambda a, b: a.abs().sqrt(), 1),
        (lambda a, b: torch.exp(a * b), 1),
    ],
)
def test_sums_bounds_and_what_is_no_polynomial(function: Function, wanted: int) -> None:
    """A sum of many products falls off as normal noise does, whatever they are of; a bounded factor adds nothing."""
    assert degree(function) == wanted
