"""Weight precisions: forms, errors against hand-computed references, sizes, reports, determinism."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from deploykit.capture import CapturedModel, capture
from deploykit.contract.errors import ConversionError
from deploykit.contract.formats import TensorScheme
from deploykit.testing.models import ZOO
from deploykit_calibration.placement import place
from deploykit_targets._onnx.count import count
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.weights import Compressed, blockwise_symmetric, dynamic_int8, float16, weight_only
from deploykit_targets.onnxruntime.scheme import weight_only as weight_only_scheme

sys.path.insert(0, str(Path(__file__).parent))
from lowering import flat, run_onnx, sqnr_db


@cache
def captured_of(name: str) -> CapturedModel:
    model, example = ZOO[name]()
    return capture(model, example_inputs=example)


@cache
def lowered(name: str) -> tuple[onnx.ModelProto, tuple[torch.Tensor, ...], tuple[str, ...]]:
    captured = captured_of(name)
    names = tuple(node.name for node in captured.graph_module.graph.nodes)
    return to_onnx(captured), captured.example_inputs, names


def fresh(name: str) -> onnx.ModelProto:
    return copy.deepcopy(lowered(name)[0])


def placed(name: str, bits: int) -> tuple[onnx.ModelProto, Mapping[str, TensorScheme]]:
    """A lowered model, and the forms that its weights are placed in."""
    return fresh(name), place(captured_of(name), None, weight_only_scheme(bits, 32)).forms


def blocks(bits: int, size: int) -> TensorScheme:
    """The form of products in the scheme."""
    (form,) = weight_only_scheme(bits, size).rules["linear"].weight
    return form


def compare(name: str, changed: onnx.ModelProto) -> float:
    model, args, _ = lowered(name)
    return sqnr_db(run_onnx(model, *args)[0], run_onnx(changed, *args)[0])


@settings(max_examples=30, deadline=None)
@given(inner=st.integers(1, 70), outer=st.integers(1, 5), bits=st.sampled_from([4, 8]), seed=st.integers(0, 99))
def test_blocks_are_within_one_step_and_keep_the_largest(inner: int, outer: int, bits: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(inner, outer)).astype(np.float32)
    codes, scales = blockwise_symmetric(weight, blocks(bits, 16))
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], 16)
    half = 1 << (bits - 1)
    restored = ((codes.astype(np.float32) - half) * scales[..., None]).reshape(outer, -1)[:, :inner].T
    steps = np.abs(np.repeat(scales, 16, axis=1)[:, :inner].T)
    # Half a step by rounding; a whole one where the value opposite the largest meets the end of the codes.
    assert np.all(np.abs(restored - weight) <= steps * 1.0001)
    assert np.isclose(np.abs(weight).max(), np.abs(restored).max(), rtol=1e-5)


@pytest.mark.parametrize(("bits", "size", "level"), [(8, 0.45, 38), (4, 0.32, 16)])
def test_weight_only_transformer(bits: int, size: float, level: float) -> None:
    result = weight_only(*placed("transformer_encoder", bits))
    kinds = {node.op_type for node in result.model.graph.node}
    assert "MatMulNBits" in kinds and "Gemm" not in kinds
    assert result.model.ByteSize() < size * lowered("transformer_encoder")[0].ByteSize()
    assert compare("transformer_encoder", result.model) > level
    assert list(result.executed.values()).count(f"int{bits}-weights") >= 9


def test_weight_only_convolutions_are_expanded_once() -> None:
    result = weight_only(*placed("residual_cnn", 8))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    assert sum(array.dtype == np.int8 for array in stored.values()) == 6
    assert result.model.ByteSize() < 0.4 * lowered("residual_cnn")[0].ByteSize()
    assert compare("residual_cnn", result.model) > 40
    counted = count(result.model.SerializeToString(), lowered("residual_cnn")[2])
    assert "Cast" not in counted.op_types and "DequantizeLinear" not in counted.op_types  # folded when loaded


def test_recurrent_weights_are_left_alone() -> None:
    result = weight_only(*placed("lstm_classifier", 8))
    assert "lstm" not in result.executed
    assert compare("lstm_classifier", result.model) > 38


@pytest.mark.parametrize("name", ["transformer_encoder", "lstm_classifier", "residual_cnn"])
def test_dynamic_int8(name: str) -> None:
    result = dynamic_int8(fresh(name))
    assert compare(name, result.model) > 30
    counted = count(result.model.SerializeToString(), lowered(name)[2])
    assert {key for key, value in result.executed.items() if value == "int8"} <= set(counted.executed)
    assert "QLinearConv" not in counted.op_types and "ConvInteger" not in counted.op_types


@pytest.mark.parametrize("name", ["transformer_encoder", "residual_cnn", "lstm_classifier"])
def test_float16_keeps_inputs_and_outputs(name: str) -> None:
    model = fresh(name)
    size = model.ByteSize()
    result = float16(model)
    assert compare(name, result.model) > 60  # 11 bits of mantissa
    assert result.model.ByteSize() < 0.65 * size
    kinds = [value.type.tensor_type.elem_type for value in result.model.graph.output]
    assert kinds == [onnx.TensorProto.FLOAT] * len(kinds)


def test_float16_names_the_weight_that_does_not_fit() -> None:
    layer = torch.nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[0, 0] = 1e6
    with pytest.raises(ConversionError, match=r"weight.*65504.*1e\+06"):
        float16(to_onnx(flat(layer, torch.randn(1, 4))))


def test_float16_lets_masks_pass() -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x.masked_fill(x > 1, torch.finfo(torch.float32).min), -1)

    x = torch.linspace(-2, 2, 8)[None]
    model = Masked()
    assert sqnr_db(model(x).numpy(), run_onnx(float16(to_onnx(flat(model, x))).model, x)[0]) > 60


@pytest.mark.parametrize("make", [lambda m: weight_only(m, placed("transformer_encoder", 4)[1]), dynamic_int8, float16])
def test_same_model_gives_same_bytes(make: Callable[[onnx.ModelProto], Compressed]) -> None:
    first, second = (make(fresh("transformer_encoder")).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
