"""`torch.vmap` and its siblings: mapped functions become batched operators, derivatives are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vjp
from torch.nn import functional as F

from deploykit.capture import capture
from deploykit.contract.errors import CaptureError

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


class Mapped(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(16, 8)
        self.weights, self.biases = nn.Parameter(torch.randn(4, 8, 16)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


MAPPED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "over weights": lambda m, x: torch.vmap(lambda w: F.linear(x, w))(m.weights),
    "of a module": lambda m, x: torch.vmap(m.linear)(x),
    "over two, to another axis": lambda m, x: torch.vmap(
        lambda w, b: torch.relu(x @ w.T + b), in_dims=(0, 0), out_dims=1
    )(m.weights, m.biases),
    "of a module, to another axis": lambda m, x: torch.vmap(m.linear, out_dims=1)(x),
    "of a module, to the last axis": lambda m, x: torch.vmap(m.linear, in_dims=1, out_dims=-1)(
        x.view(3, 2, 8).repeat(1, 1, 2)
    ),
    "two results": lambda m, x: torch.cat(torch.vmap(lambda r: (m.linear(r), r[:8]), out_dims=(1, 1))(x)),
    "nested, to another axis": lambda m, x: torch.vmap(torch.vmap(m.linear), in_dims=1, out_dims=1)(
        x[:, None].repeat(1, 2, 1)
    ),
    "of a softmax": lambda m, x: torch.vmap(lambda row: torch.softmax(m.linear(row), 0).sum())(x),
    "of a convolution": lambda m, x: torch.vmap(lambda w: F.conv1d(x[:, None], w[:, None, :3]))(m.weights),
    "of attention": lambda m, x: torch.vmap(lambda q: F.scaled_dot_product_attention(q, q, q))(x.view(3, 1, 4, 4)),
    "of an ensemble": lambda m, x: torch.vmap(lambda p: functional_call(m.linear, p, (x,)))(
        {"weight": m.weights, "bias": m.biases}
    ),
    "called with other weights": lambda m, x: functional_call(m.linear, {"weight": m.weights[0]}, (x,)),
}


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_functions_are_plain_operators(name: str) -> None:
    model = Mapped(MAPPED[name]).eval()
    captured = capture(model, example_inputs=(X,))
    assert all(isinstance(n.target, torch._ops.OpOverload) for n in captured.graph_module.graph.find_nodes(op="call"))
    with torch.no_grad():
        torch.testing.assert_close(captured.graph_module(X.flip(0))[0], model(X.flip(0)), rtol=1e-4, atol=1e-5)


REFUSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "grad": lambda m, x: grad(lambda y: m.linear(y).square().sum())(x),
    "jacrev": lambda m, x: jacrev(m.linear)(x),
    "jvp": lambda m, x: jvp(m.linear, (x,), (torch.ones_like(x),))[1],
    "vjp": lambda m, x: vjp(m.linear, x)[1](torch.ones(3, 8))[0],
    "nested vmap": lambda m, x: torch.vmap(lambda w: torch.vmap(lambda row: w @ row)(x))(m.weights),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_with_a_line_and_leaves_nothing_behind(name: str) -> None:
    with pytest.raises(CaptureError, match=r"test_transforms\.py") as caught:
        capture(Mapped(REFUSED[name]).eval(), example_inputs=(X,))
    assert caught.value.hint
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0
    capture(Mapped(MAPPED["over weights"]).eval(), example_inputs=(X,))  # and the next one works


def test_an_output_that_numpy_does_not_have_is_refused() -> None:
    with pytest.raises(CaptureError, match="is bfloat16") as told:
        capture(Mapped(lambda m, x: m.linear(x).bfloat16()), example_inputs=(X,))
    assert "float32" in str(told.value.hint)
