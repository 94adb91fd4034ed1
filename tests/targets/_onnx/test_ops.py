"""Every translation against PyTorch: the operator in a one-line model, lowered, run in ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploykit_targets._onnx.lower import to_onnx

sys.path.insert(0, str(Path(__file__).parent))
from lowering import flat, run_onnx, sqnr_db
from op_cases import CASES, Apply, X, draw


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_pytorch(name: str) -> None:
    function, args = CASES[name]
    model = Apply(function)
    with torch.no_grad():
        wanted = model(*args)
    captured = flat(model, *args)
    wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
    outputs = run_onnx(to_onnx(captured), *args)
    for want, got in zip(wanted, outputs, strict=True):
        assert tuple(got.shape) == tuple(want.shape)
        assert got.dtype == want.numpy().dtype
        if want.dtype.is_floating_point:  # float32 rounding, order of sums: -110 dB
            assert sqnr_db(want.numpy(), got) > 110
        else:
            assert np.array_equal(want.numpy(), got)


RECURRENT = {
    "lstm": nn.LSTM(5, 4, batch_first=True),
    "lstm_deep_bidirectional": nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True),
    "lstm_time_first_without_bias": nn.LSTM(5, 4, bias=False),
    "gru": nn.GRU(5, 4, num_layers=2, batch_first=True),
    "gru_bidirectional": nn.GRU(5, 4, bidirectional=True),
    "rnn_relu": nn.RNN(5, 4, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_stay_native(name: str) -> None:
    layer = RECURRENT[name].eval()
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = draw(3, 6, 5)
    model = to_onnx(flat(layer, x))
    with torch.no_grad():
        output, states = layer(x)
    wanted = [output, *(states if isinstance(states, tuple) else [states])]
    for want, got in zip(wanted, run_onnx(model, x), strict=True):
        assert sqnr_db(want.numpy(), got) > 110
    assert {node.op_type for node in model.graph.node} & {"LSTM", "GRU", "RNN"}


@pytest.mark.parametrize("opset", [18, 19, 21, 22])
def test_other_opsets(opset: int) -> None:
    model = Apply(lambda a: F.gelu(F.layer_norm(a, (6,))).mean(1) + F.gelu(a, approximate="tanh").amax(1))
    captured = flat(model, X)
    lowered = to_onnx(captured, opset=opset)
    assert lowered.opset_import[0].version == opset
    with torch.no_grad():
        assert sqnr_db(model(X).numpy(), run_onnx(lowered, X)[0]) > 110
