"""The fast simulation gives exactly the numbers of the q/dq operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from hypothesis import given
from hypothesis import strategies as st

from deploykit.contract.decibels import SQNR_CAP_DB, sqnr_db
from deploykit.contract.scheme import Scheme
from deploykit_calibration.placement import place
from deploykit_calibration.run_time import round_rows
from deploykit_calibration.simulate import SimulatedModel, fake_quantize, fuse, run, values
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86
from deploykit_targets.litert.scheme import LITERT

Zoo = Callable[[str], Any]
_OPS = torch.ops.quantized_decomposed


@given(
    st.floats(2.0**-24, 2.0**14, width=32),
    st.integers(0, 255),
    st.booleans(),
    st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=30),
)
def test_one_rounding_is_bit_equal(scale: float, zero_point: int, signed: bool, numbers: list[float]) -> None:
    low, high, dtype = (-128, 127, torch.int8) if signed else (0, 255, torch.uint8)
    zero_point = zero_point - 128 if signed else zero_point
    ties = (torch.arange(-20, 20) + 0.5) * scale
    x = torch.cat([torch.tensor(numbers), ties, torch.tensor(numbers) * scale])
    details = (scale, zero_point, low, high, dtype)
    expected = _OPS.dequantize_per_tensor.default(_OPS.quantize_per_tensor.default(x, *details), *details)
    assert torch.equal(fake_quantize(x, scale, low - zero_point, high - zero_point), expected)


def test_ties_go_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert fake_quantize(x, 1.0, -128, 127).tolist() == [0.0, 2.0, 2.0, 0.0, -2.0]


@pytest.mark.parametrize("scheme", [ONNX_X86, LITERT, TENSORRT], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("name", ["residual_cnn", "unet_like", "transformer_encoder", "two_inputs_dict_output"])
def test_fused_graphs_are_bit_equal(zoo: Zoo, name: str, scheme: Scheme) -> None:
    case = zoo(name)
    quantized = place(case.captured, case.table, scheme)
    fused = fuse(quantized.graph_module)
    assert not any("quantized_decomposed" in str(node.target) for node in fused.graph.nodes)
    for feeds in case.feeds[:2]:
        for want, got in zip(run(quantized.graph_module, feeds), run(fused, feeds), strict=True):
            assert torch.equal(want, got)


def test_stepping_gives_the_values_of_a_run(zoo: Zoo) -> None:
    case = zoo("residual_cnn")
    inputs = [case.feeds[0][spec.name] for spec in case.captured.inputs]
    found = dict(values(case.captured.graph_module, inputs, {"conv2d", "linear"}))
    assert list(found) == ["conv2d", "linear"]
    torch.testing.assert_close(found["linear"], case.captured.graph_module(*inputs)[0], rtol=0, atol=0)


def test_the_simulated_model_speaks_arrays(zoo: Zoo) -> None:
    case = zoo("two_inputs_dict_output")
    quantized = place(case.captured, case.table, ONNX_X86)
    feeds = {name: tensor.numpy() for name, tensor in case.feeds[0].items()}
    outputs = SimulatedModel(case.captured, quantized).run(feeds)
    assert set(outputs) == {spec.name for spec in case.captured.outputs}
    assert all(array.dtype == np.float32 for array in outputs.values())


def test_layers_are_compared_worst_first(zoo: Zoo) -> None:
    case = zoo("residual_cnn")
    quantized = place(case.captured, case.table, ONNX_X86)
    arrays = [{name: tensor.numpy() for name, tensor in feeds.items()} for feeds in case.feeds[:4]]
    layers = SimulatedModel(case.captured, quantized).compare_layers(arrays)
    assert {layer.name for layer in layers} == {layer.name for layer in quantized.layers}
    assert [layer.sqnr_db for layer in layers] == sorted(layer.sqnr_db for layer in layers)
    assert all(30.0 < layer.sqnr_db < 80.0 for layer in layers)
    last = next(layer for layer in layers if layer.op == "linear")
    signal = noise = 0.0
    for feeds in case.feeds[:4]:
        (want,), (got,) = run(case.captured.graph_module, feeds), run(quantized.graph_module, feeds)
        signal, noise = signal + float(want.square().sum()), noise + float((want - got).square().sum())
    assert last.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    assert last.module_path == "fc"


def test_a_graph_without_rounding_has_no_noise(zoo: Zoo) -> None:
    case = zoo("mlp")
    quantized = place(case.captured, case.table, ONNX_X86, exclude=("*",))
    arrays = [{name: tensor.numpy() for name, tensor in case.feeds[0].items()}]
    layers = SimulatedModel(case.captured, quantized).compare_layers(arrays)
    assert {layer.sqnr_db for layer in layers} == {SQNR_CAP_DB}


def test_sqnr_is_capped() -> None:
    assert sqnr_db(100.0, 1.0) == pytest.approx(20.0)
    assert sqnr_db(1.0, 0.0) == SQNR_CAP_DB


def test_rows_are_rounded_between_their_own_extremes_and_zero() -> None:
    """Affine int8 for each row, against NumPy; a row of one sign begins at zero, a row of zeros stays."""
    rows = np.array([[-1.0, 0.25, 3.1], [0.5, 0.7, 2.0], [-4.0, -0.3, -1.0], [0.0, 0.0, 0.0]], np.float32)
    low, high = np.minimum(rows.min(1, keepdims=True), 0), np.maximum(rows.max(1, keepdims=True), 0)
    scale = np.where(high == low, 1, (high - low) / np.float32(255)).astype(np.float32)
    zero_point = np.rint(-128 - low / scale)
    expected = (np.clip(np.rint(rows / scale) + zero_point, -128, 127) - zero_point) * scale
    got = round_rows(torch.from_numpy(rows)[None])[0].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.abs(got - rows).max() > 0 and (np.abs(got - rows) <= scale / 2 + 1e-6).all()


def test_a_layer_that_rounds_when_it_runs_is_simulated(zoo: Zoo) -> None:
    """What LiteRT's last linear layer does: int8 weights, rows of its input rounded, a float result."""
    case = zoo("mlp")
    quantized = place(case.captured, case.table, replace(LITERT, float_outputs=True))
    (name,) = quantized.run_time
    last = quantized.layers[-1]
    assert (last.name, last.precision, last.reason) == (name, "int8", "")
    nodes = {node.name: node for node in quantized.graph_module.graph.nodes}
    weight = quantized.graph_module.get_buffer(nodes[name].args[1].target)
    steps = weight / (weight.abs().amax(1, keepdim=True) / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3) and steps.abs().max() <= 127.001
    simulated = SimulatedModel(case.captured, quantized)
    inputs = [case.feeds[0][spec.name] for spec in case.captured.inputs]
    found = dict(values(simulated.graph_module, inputs, {name, f"{name}_input"}))
    source = nodes[name].args[0].name
    read = dict(values(simulated.graph_module, inputs, {source}))[source]
    assert torch.equal(found[f"{name}_input"], round_rows(read)) and not torch.equal(found[f"{name}_input"], read)


def test_a_model_without_integer_layers_says_that_nothing_is_rounded(zoo: Zoo) -> None:
    case = zoo("mlp")
    assert SimulatedModel(case.captured, place(case.captured, case.table, LITERT)).rounds
    assert not SimulatedModel(case.captured, place(case.captured, case.table, LITERT, exclude=("*",))).rounds
