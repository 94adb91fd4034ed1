"""Capture leaves the caller's model exactly as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit.testing.models import lstm_classifier, residual_cnn


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything that a user could see change: identities, flags, gradients, values."""
    return {
        "training": [m.training for m in module.modules()],
        "parameters": [
            (n, id(p), p.requires_grad, p.device, p.dtype, p.grad is None) for n, p in module.named_parameters()
        ],
        "buffers": [(n, id(b), b.clone()) for n, b in module.named_buffers()],
        "values": [p.detach().clone() for p in module.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
        "attributes": [sorted(m.__dict__) for m in module.modules()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("training", "parameters", "hooks", "attributes"):
        assert before[key] == after[key]
    for (_, want_id, want), (_, have_id, have) in zip(before["buffers"], after["buffers"], strict=True):
        assert want_id == have_id
        assert torch.equal(want, have)
    assert all(map(torch.equal, before["values"], after["values"]))


def test_training_model_with_gradients_frozen_layers_and_hooks_is_untouched() -> None:
    module, example = residual_cnn()
    module.train()
    module.layer1.eval()
    module.conv1.weight.requires_grad_(False)
    module.fc.register_forward_hook(lambda *_: None)
    module(*example).sum().backward()
    before = state_of(module)
    random_state = torch.get_rng_state()
    captured = capture(module, example_inputs=example)
    assert_same(before, state_of(module))
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert not any(p.requires_grad for p in captured.graph_module.parameters())
    module(*example).sum().backward()  # still trains


def test_recurrent_layers_keep_their_flat_weights() -> None:
    module, example = lstm_classifier()
    before = [id(w) for w in module.rnn._flat_weights]
    capture(module, example_inputs=example)
    assert [id(w) for w in module.rnn._flat_weights] == before
    assert all(isinstance(w, nn.Parameter) for w in module.rnn._flat_weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision_is_captured_as_a_float32_copy(dtype: torch.dtype) -> None:
    module, (x,) = residual_cnn()
    module.to(dtype)
    before = state_of(module)
    captured = capture(module, example_inputs=(x.to(dtype),))
    assert_same(before, state_of(module))
    assert captured.inputs[0].dtype == captured.outputs[0].dtype == "float32"
    assert {p.dtype for p in captured.graph_module.parameters()} == {torch.float32}


def test_weights_are_shared_not_copied() -> None:
    module, example = residual_cnn()
    captured = capture(module, example_inputs=example)
    assert captured.graph_module.fc.weight.data_ptr() == module.fc.weight.data_ptr()


class Counting(nn.Module):
    """Keeps state in attributes, a list and a buffer, as careless models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0
        self.seen: list[Tensor] = []
        self.register_buffer("ones", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.scratch = x * 2
        return self.linear(x + self.ones)


def test_attributes_that_forward_sets_are_put_back() -> None:
    module = Counting()
    seen = module.seen
    capture(module, example_inputs=(torch.randn(2, 4),))
    assert module.calls == 0
    assert module.seen is seen
    assert seen == []
    assert not hasattr(module, "scratch")


class Statistic(nn.Module):
    """Writes its buffer in eager mode only, so that tracing passes and the reference run could leak."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.mean.mul_(0.9).add_(x.mean(0))
        return x * 2


def test_buffers_written_by_forward_are_put_back() -> None:
    module = Statistic()
    capture(module, example_inputs=(torch.randn(2, 4),))
    assert torch.equal(module.mean, torch.zeros(4))


def test_example_inputs_are_not_written_even_by_an_in_place_model() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return x.relu_()

    x = torch.randn(2, 4)
    kept = x.clone()
    captured = capture(InPlace(), example_inputs=(x,))
    assert torch.equal(x, kept)
    torch.testing.assert_close(captured.run({"x": x})["output"], (kept + 1).relu())
    assert torch.equal(x, kept)
