"""E4M3 placed, simulated in PyTorch and lowered, compared with NumPy's own rounding (ml_dtypes)."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import TensorProto

from deploykit.capture import capture
from deploykit.contract.formats import FLOAT8
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_calibration.simulate import SimulatedModel, fake_float8
from deploykit_calibration.weights import weight_quant
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.reference import ReferenceSession
from deploykit_targets._schemes.gpu import TENSORRT_FP8

MAX_E4M3 = 448.0


@pytest.mark.parametrize("scale", [1.0, 0.0123, 7.5])
def test_simulated_rounding_is_that_of_onnx(scale: float) -> None:
    """Bit for bit: both divide in float32, saturate at 448 and round to even."""
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32) * 300
    step = np.float32(scale)
    want = np.clip(values / step, -MAX_E4M3, MAX_E4M3).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step
    np.testing.assert_array_equal(fake_float8(torch.from_numpy(values), float(step), 448).numpy(), want)


@pytest.mark.parametrize("axis", [0, None])
def test_weights_are_rounded_from_their_float_values(axis: int | None) -> None:
    weight = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    scheme = TENSORRT_FP8 if axis == 0 else replace(TENSORRT_FP8, weight=FLOAT8)
    found = weight_quant(torch.from_numpy(weight), 0, scheme)
    scale = (np.abs(weight).max(1, keepdims=True) if axis == 0 else np.abs(weight).max()) / np.float32(MAX_E4M3)
    want = np.clip(weight / scale, -MAX_E4M3, MAX_E4M3).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    got = found.quantize(torch.from_numpy(weight))
    assert got.dtype is torch.float8_e4m3fn
    np.testing.assert_allclose(
        got.float().numpy() * scale, want * scale, rtol=0.07
    )  # a step, where scales differ by an ulp
    assert np.mean(got.float().numpy() == want) > 0.95


@pytest.mark.parametrize("layer", [torch.nn.Linear(12, 20), torch.nn.Conv1d(3, 4, 2)], ids=["linear", "conv"])
def test_the_file_computes_what_is_simulated(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 12) if isinstance(layer, torch.nn.Linear) else torch.randn(2, 3, 9)
    captured = capture(torch.nn.Sequential(layer, torch.nn.ReLU()).eval(), example_inputs=(x,))
    table = calibrate(captured, [x], progress=False)
    placed = place(captured, table, replace(TENSORRT_FP8, min_linear=0))
    assert {layer.precision for layer in placed.layers if layer.macs} == {"fp8"}
    model = to_onnx(captured, placed.graph_module, opset=20)
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.FLOAT8E4M3FN in types and TensorProto.INT8 not in types
    name = captured.inputs[0].name
    want = SimulatedModel(captured, placed).run({name: x.numpy()})
    session = ReferenceSession(captured.inputs, captured.outputs, model.SerializeToString())
    (got,) = session.run({name: x.numpy()}).values()
    np.testing.assert_allclose(got, next(iter(want.values())), rtol=1e-3, atol=1e-3)
