"""q/dq graphs: explicit parameters, exactness against the PyTorch simulation, and int8 kernels in ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from onnx import numpy_helper
from torch import nn

from deploykit.capture import capture
from deploykit.testing.models import ZOO
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_targets._onnx.check import check
from deploykit_targets._onnx.count import count
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.ort_forms import for_onnxruntime
from deploykit_targets._schemes.x86 import ONNX_X86

sys.path.insert(0, str(Path(__file__).parent))
from lowering import flat, run_onnx, sqnr_db

QUANTIZED = torch.ops.quantized_decomposed


def draws(specs: Any, count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.int64:
            return torch.randint(0, 64, tensor.shape, generator=generator)
        return torch.randn(tensor.shape, generator=generator)

    return [{name: draw(tensor) for name, tensor in specs.items()} for _ in range(count)]


@pytest.fixture(scope="module", params=list(ZOO))
def quantized(request: pytest.FixtureRequest) -> Any:
    model, example = ZOO[request.param]()
    captured = capture(model, example_inputs=example)
    feeds = draws(dict(zip((s.name for s in captured.inputs), captured.example_inputs, strict=True)), 8)
    table = calibrate(captured, feeds, progress=False)
    return captured, place(captured, table, ONNX_X86), feeds


def test_file_equals_simulation(quantized: Any) -> None:
    captured, placed, feeds = quantized
    model = for_onnxruntime(to_onnx(captured, placed.graph_module))
    assert check(model) == ()
    args = tuple(feeds[0][spec.name] for spec in captured.inputs)
    with torch.no_grad():
        simulated = placed.graph_module(*args)
    for want, got in zip(simulated, run_onnx(model, *args), strict=True):
        assert sqnr_db(want.numpy(), got) > 45  # a rounding tie now and then; else float32 rounding


def test_every_placed_layer_runs_in_int8(quantized: Any) -> None:
    captured, placed, _ = quantized
    model = for_onnxruntime(to_onnx(captured, placed.graph_module))
    products = {layer.name: layer.precision for layer in placed.layers if layer.macs}
    counted = count(model.SerializeToString(), list(products))
    assert counted.float_beside_dequantise == ()
    wanted = {name for name, precision in products.items() if precision == "int8"}
    assert {name for name, precision in counted.executed.items() if precision == "int8"} >= wanted


def int8_linear(bias_scale: float = 0.05 * 0.02) -> Any:
    """x -> q -> dq -> linear(int8 weights per channel, int32 bias), by hand."""
    captured = flat(nn.Linear(6, 3), torch.randn(2, 6))
    module, graph = captured.graph_module, captured.graph_module.graph
    (node,) = (node for node in graph.nodes if str(node.target) == "aten.linear.default")
    weights = torch.tensor([[1, -2, 3, -4, 5, -6], [127, 0, -127, 1, 1, 1], [9, 8, 7, 6, 5, 4]], dtype=torch.int8)
    tensors = {
        "w_q": weights, "w_scale": torch.full((3,), 0.02), "b_q": torch.tensor([10, -20, 30], dtype=torch.int32),
        "b_scale": torch.full((3,), bias_scale), "zeros": torch.zeros(3, dtype=torch.int64),
    }  # fmt: skip
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    with graph.inserting_before(node):
        held = {name: graph.get_attr(name) for name in tensors}
        params = (0.05, 128, 0, 255, torch.uint8)
        quantize = graph.call_function(QUANTIZED.quantize_per_tensor.default, (node.args[0], *params))
        x = graph.call_function(QUANTIZED.dequantize_per_tensor.default, (quantize, *params))
        per_channel = QUANTIZED.dequantize_per_channel.default
        w = graph.call_function(per_channel, (held["w_q"], held["w_scale"], held["zeros"], 0, -127, 127, torch.int8))
        b = graph.call_function(
            per_channel, (held["b_q"], held["b_scale"], held["zeros"], 0, -(2**31), 2**31 - 1, torch.int32)
        )
    node.args = (x, w, b)
    module.recompile()
    return captured


def test_parameters_are_explicit_and_weights_stay_int8() -> None:
    captured = int8_linear()
    model = to_onnx(captured)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    kinds = sorted(stored[node.input[2]].dtype.name for node in nodes)
    assert kinds == ["int32", "int8", "uint8", "uint8"]
    assert stored["w_q"].dtype == np.int8 and stored["b_q"].dtype == np.int32
    x = captured.example_inputs[0]
    # By hand: integers in, int32 sums, one scale out.
    codes = np.clip(np.rint(x.numpy() / np.float32(0.05)) + 128, 0, 255) - 128
    want = (codes @ stored["w_q"].T.astype(np.float64) + stored["b_q"]) * 0.05 * 0.02
    assert sqnr_db(want, run_onnx(model, x)[0]) > 110
    assert count(model.SerializeToString(), ["linear"]).executed == {"linear": "int8"}


def test_narrow_ranges_are_clipped() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            params = (0.1, 64, 0, 127, torch.uint8)
            result: torch.Tensor = QUANTIZED.dequantize_per_tensor.default(
                QUANTIZED.quantize_per_tensor.default(x, *params), *params
            )
            return result

    x = torch.linspace(-20, 20, 41)
    assert sqnr_db(Half()(x).numpy(), run_onnx(to_onnx(flat(Half(), x)), x)[0]) > 110


def test_int16_needs_opset_21() -> None:
    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            params = (0.001, 0, -32768, 32767, torch.int16)
            result: torch.Tensor = QUANTIZED.dequantize_per_tensor.default(
                QUANTIZED.quantize_per_tensor.default(x, *params), *params
            )
            return result

    x = torch.linspace(-3, 3, 7)
    captured = flat(Wide(), x)
    assert sqnr_db(Wide()(x).numpy(), run_onnx(to_onnx(captured, opset=21), x)[0]) > 110


def relu_then_wide_range(zero_point: int, limit: float | None = None) -> onnx.ModelProto:
    """conv -> relu (or clip) -> q -> dq with a range that does not imply the limit."""

    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = nn.functional.conv2d(x, self.weight, padding=1)
            y = torch.relu(y) if limit is None else torch.clamp(y, 0.0, limit)
            params = (0.1, zero_point, 0, 255, torch.uint8)
            y = QUANTIZED.quantize_per_tensor.default(y, *params)
            result: torch.Tensor = QUANTIZED.dequantize_per_tensor.default(y, *params)
            return result

    return to_onnx(flat(Limited(), torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize(("zero_point", "limit"), [(50, None), (50, 6.0), (0, 6.0)])
def test_limits_move_behind_the_quantizer_exactly(zero_point: int, limit: float | None) -> None:
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 3
    plain = run_onnx(relu_then_wide_range(zero_point, limit), x)[0]
    moved = for_onnxruntime(relu_then_wide_range(zero_point, limit))
    order = [node.op_type for node in moved.graph.node]
    assert order == ["Conv", "QuantizeLinear", "Clip", "DequantizeLinear"]
    assert check(moved) == ()
    assert np.array_equal(plain, run_onnx(moved, x)[0])


def test_a_limit_that_the_range_implies_stays() -> None:
    assert "Relu" in {node.op_type for node in for_onnxruntime(relu_then_wide_range(0)).graph.node}
