"""LSTM and GRU stay one op; unrolling gives plain ops with the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture, unroll_recurrent
from deploykit.errors import CaptureError


@pytest.mark.parametrize("name", ["lstm_classifier", "gru_classifier"])
def test_unrolled_outputs_are_equal(zoo: Any, name: str) -> None:
    module, (x,), captured = zoo(name)
    unrolled = unroll_recurrent(captured)
    ops = {origin.op for origin in unrolled.origins.values()}
    assert not ops & {"aten.lstm.input", "aten.gru.input"}
    assert "aten.linear.default" in ops
    assert unrolled.fingerprint != captured.fingerprint
    other = torch.randn_like(x)
    with torch.no_grad():
        torch.testing.assert_close(unrolled.run({"x": other})["output"], module(other), rtol=1e-5, atol=1e-6)
    assert {o.module_path for o in unrolled.origins.values()} <= {"rnn", "fc", ""}


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, bias=False),
        nn.GRU(3, 4, bidirectional=True),
        nn.RNN(3, 4, nonlinearity="relu", num_layers=2),
        nn.RNN(3, 4, batch_first=True),
    ],
)
def test_every_form_unrolls_with_final_states(layer: nn.Module) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    captured = capture(Both(), example_inputs=(torch.randn(5, 2, 3),))
    unroll_recurrent(captured)  # checks the outputs itself


def test_a_model_without_recurrence_comes_back_as_it_is(zoo: Any) -> None:
    captured = zoo("mlp")[2]
    assert unroll_recurrent(captured) is captured


def test_dynamic_axes_cannot_be_unrolled(zoo: Any) -> None:
    with pytest.raises(CaptureError, match=r"aten\.gru\.input in rnn .*cannot be unrolled"):
        unroll_recurrent(zoo("gru_classifier", True)[2])
