"""Complex arithmetic becomes arithmetic on pairs of real tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import CapturedModel, capture

Function = Callable[..., Any]
A, B = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
ANGLES = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.1])[None]


class _Of(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("turns", torch.polar(torch.ones(6, 2), ANGLES))

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self, *tensors)


def _captured(function: Function, *inputs: Tensor) -> tuple[CapturedModel, list[Tensor]]:
    model = _Of(function).eval()
    captured = capture(model, example_inputs=inputs)
    wanted = model(*inputs)
    return captured, list(wanted) if isinstance(wanted, tuple) else [wanted]


def _complex_nodes(captured: CapturedModel) -> list[str]:
    values = ((node.name, node.meta.get("val")) for node in captured.graph_module.graph.nodes)
    return [name for name, value in values if isinstance(value, Tensor) and value.is_complex()]


def _rotary(model: Any, x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(2, 6, 3, 2, 2))
    return torch.view_as_real(pairs * model.turns[:, None]).flatten(3)


CASES: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "rotary embedding": (_rotary, (torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(2)),)),
    "product": (lambda m, a, b: torch.view_as_real(torch.complex(a, b) * torch.complex(b, a)), (A, B)),
    "with a number": (lambda m, a, b: torch.view_as_real((torch.complex(a, b) * 2 - 1) * (0.5 + 2j)), (A, B)),
    "with a real tensor": (lambda m, a, b: torch.view_as_real(torch.complex(a, b) * b - a), (A, B)),
    "spread": (lambda m, a, b: torch.view_as_real(torch.complex(a, b) + torch.complex(a[:1], b[:1]) * 2), (A, B)),
    "quotient": (lambda m, a, b: torch.view_as_real(torch.complex(a, b) / torch.complex(b, a)), (A, B)),
    "conjugate": (lambda m, a, b: torch.view_as_real((torch.complex(a, b).conj() * 2).transpose(0, 1)), (A, B)),
    "parts": (lambda m, a, b: (torch.complex(a, b).real * 2, (-torch.complex(a, b)).imag * 2), (A, B)),
    "size and angle": (lambda m, a, b: (torch.complex(a, b).abs(), torch.complex(a, b).angle()), (A, B)),
    "polar": (lambda m, a, b: torch.view_as_real(torch.polar(a.abs(), b)), (A, B)),
    "exponential": (lambda m, a, b: torch.view_as_real(torch.exp(torch.complex(a, b))), (A, B)),
    "product of matrices": (lambda m, a, b: torch.view_as_real(torch.complex(a, b) @ torch.complex(b, a).T), (A, B)),
    "sums": (lambda m, a, b: torch.view_as_real(torch.cat([torch.complex(a, b), torch.complex(b, b)]).sum(0)), (A, B)),
}


@pytest.mark.parametrize("name", CASES)
def test_complex_arithmetic_is_written_as_pairs(name: str) -> None:
    function, inputs = CASES[name]
    captured, wanted = _captured(function, *inputs)
    assert not _complex_nodes(captured)
    for want, got in zip(wanted, captured.graph_module(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
