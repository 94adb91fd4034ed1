"""The recorded derivations give every constant of a captured graph bit for bit, and carry gradients to parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import CapturedModel, capture, unroll_recurrent
from deploykit.capture.derivation import evaluate, own_names
from deploykit.capture.fingerprint import constant
from deploykit.testing.models import ZOO, randomise_batch_norms


def own(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def check(module: nn.Module, captured: CapturedModel) -> None:
    """Every constant equals its derivation; every parameter that reaches an output reaches it through one."""
    tensors, known = own(module), dict[int, Any]()
    values = {name: evaluate(each, tensors.__getitem__, known) for name, each in captured.derivations.items()}
    for name, value in values.items():
        stored = constant(captured.graph_module, name)
        assert value.shape == stored.shape and value.stride() == stored.stride()
        assert torch.equal(value, stored), name
    read = {name for each in captured.derivations.values() for name in own_names(each)}
    graph = captured.graph_module.graph
    assert {str(n.target) for n in graph.nodes if n.op == "get_attr"} >= set(captured.derivations)
    reached = {id(tensors[name]) for name in read}  # a tied weight has two names, and is read by one
    assert not [name for name, parameter in module.named_parameters() if id(parameter) not in reached]
    total = sum(value.double().sum() for value in values.values() if value.requires_grad)
    total.backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_constants_follow_from_parameters(zoo: Any, name: str) -> None:
    module, _, captured = zoo(name)
    check(module, captured)
    module.zero_grad(set_to_none=True)


class Odd(nn.Module):
    """What folds in ways of its own: tied, split, flipped, complex and normalised weights, a scale of ones, a token."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(24, 8))
        self.complex = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.gain, self.token = nn.Parameter(torch.ones(8)), nn.Parameter(torch.randn(1, 1, 8))
        self.tied = nn.Linear(8, 8)
        self.also = nn.Linear(8, 8)
        self.also.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x * self.gain], 1)
        query, key, value = (x @ part.t() for part in self.packed.chunk(3))
        x = self.also(self.tied(query + key + value)) + self.normed(x)
        x = self.attention(x, x, x, need_weights=False)[0]
        turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * self.complex.conj()
        result: Tensor = torch.view_as_real(turned).flatten(-2)
        return result


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("make", "shape"), [(Odd, (2, 5, 8)), (transposed, (2, 4, 3, 3))])
def test_odd_folds_are_recorded(make: Any, shape: tuple[int, ...], dynamic: bool) -> None:
    torch.manual_seed(0)
    module = randomise_batch_norms(make()).eval()
    check(module, capture(module, example_inputs=(torch.randn(shape),), dynamic_batch=dynamic, trainable=True))


def test_what_is_neutral_now_is_only_left_out_where_nothing_will_train() -> None:
    module = Odd().eval()
    x = torch.randn(2, 5, 8)
    names = [
        {
            name
            for each in capture(module, example_inputs=(x,), trainable=train).derivations.values()
            for name in own_names(each)
        }
        for train in (False, True)
    ]
    assert names[1] - names[0] == {"gain"}


def test_unrolled_layers_keep_what_is_known_of_their_weights() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(4, 4, batch_first=True).eval()
    check(module, unroll_recurrent(capture(module, example_inputs=(torch.randn(1, 3, 4),))))
