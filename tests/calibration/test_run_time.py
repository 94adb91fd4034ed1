"""Rounding as kernels do it when they run: the forms of inputs, and recurrent cells step by step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.capture import capture
from deploykit.contract.formats import INT8_ROWS, INT8_SAMPLES, INT8_SYMMETRIC, UINT8_AFFINE, PerGroup, TensorScheme
from deploykit_calibration.run_time import arguments_of, round_inputs, round_rows

X = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 10)).astype(np.float32))
BLOCKS = replace(INT8_SYMMETRIC, granularity=PerGroup(4))


def by_hand(values: np.ndarray, form: TensorScheme) -> np.ndarray:
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    if form.symmetric:
        scale, zero = max(high, -low) / form.quant_max, 0.0
    else:
        scale = (high - low) / (form.quant_max - form.quant_min)
        zero = np.rint(form.quant_min - low / scale)
    found: np.ndarray = (np.clip(np.rint(values / scale) + zero, form.quant_min, form.quant_max) - zero) * scale
    return found


@pytest.mark.parametrize(
    ("form", "parts"),
    [
        (UINT8_AFFINE, [np.s_[:]]),
        (INT8_SAMPLES, [np.s_[0], np.s_[1]]),
        (INT8_ROWS, [np.s_[i, j] for i in range(2) for j in range(3)]),
        (BLOCKS, [np.s_[i, j, k : k + 4] for i in range(2) for j in range(3) for k in (0, 4, 8)]),
    ],
    ids=["tensor", "samples", "rows", "blocks"],
)
def test_what_shares_a_scale(form: TensorScheme, parts: list[object]) -> None:
    got = round_rows(X, *arguments_of(form)).numpy()
    for part in parts:
        np.testing.assert_allclose(got[part], by_hand(X.numpy()[part], form), rtol=1e-5, atol=1e-6)  # type: ignore[call-overload,index]
    assert np.abs(got - X.numpy()).max() > 0.0


def test_zeros_stay_zeros() -> None:
    for form in (UINT8_AFFINE, INT8_ROWS, BLOCKS):
        assert not round_rows(torch.zeros(2, 5), *arguments_of(form)).any()


class Recurrent(nn.Module):
    """One recurrent module, all of its results."""

    def __init__(self, kind: type[nn.RNNBase], **arguments: object) -> None:
        super().__init__()
        self.cell = kind(6, 5, **arguments)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "arguments",
    [{"batch_first": True}, {"num_layers": 2, "bidirectional": True}, {"bias": False}],
    ids=["batch first", "two layers, two directions", "no biases"],
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_cells_compute_what_the_operator_does(kind: type[nn.RNNBase], arguments: dict[str, object]) -> None:
    """With so many steps that rounding shows nowhere; with 255 it does."""
    torch.manual_seed(0)
    captured = capture(Recurrent(kind, **arguments).eval(), example_inputs=(X[..., :6],))
    want = captured.graph_module(X[..., :6])[0]
    fine = TensorScheme("int32", quant_min=-(2**22), quant_max=2**22, granularity=PerGroup(0))
    for form, most in ((fine, 1e-5), (INT8_ROWS, 0.1)):
        graph = capture(Recurrent(kind, **arguments).eval(), example_inputs=(X[..., :6],)).graph_module
        graph.load_state_dict(captured.graph_module.state_dict())
        (cell,) = (node for node in graph.graph.nodes if str(node.target).endswith(".input"))
        round_inputs(cell, form)
        graph.recompile()
        got = graph(X[..., :6])[0]
        assert float((got - want).abs().max()) < most
    assert not torch.equal(got, want)
