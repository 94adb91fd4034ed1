"""Weights held in 4 or 8 bits: codes and scales against NumPy, files against ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploykit.contract.formats import INT4_CHANNELS, INT8_DIVIDED, PerGroup
from deploykit.contract.tensors import TensorSpec
from deploykit_targets._onnx.held import OPSET, held, hold_weights
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.reference import ReferenceSession

RNG = np.random.default_rng(0)
BLOCKS = replace(INT4_CHANNELS, granularity=PerGroup(32))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1e3), st.integers(1, 3), st.integers(1, 5))
def test_codes_are_within_half_a_step_of_the_weight(seed: int, size: float, blocks: int, outer: int) -> None:
    weight = (np.random.default_rng(seed).normal(size=(32 * blocks, outer)) * size).astype(np.float32)
    codes, scales = held(weight, BLOCKS)
    assert np.abs(codes).max() <= 7 and (scales > 0).all()
    step = np.repeat(scales, 32, axis=0)
    # scales are rounded to float16 (2**-11): the largest element may fall outside the last code by so much
    assert np.all(np.abs(codes * step - weight) <= step * (0.5 + 7 * 2.0**-10))
    codes, scales = held(weight, INT8_DIVIDED)
    assert np.abs(codes).max() <= 127
    assert np.all(np.abs(codes * scales - weight) <= scales * (0.5 + 127 * 2.0**-10))


def test_scales_are_what_float16_holds_and_zeros_have_one() -> None:
    weight = np.zeros((64, 2), np.float32)
    weight[:32, 0] = 0.3
    codes, scales = held(weight, BLOCKS)
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(scales[:, 1], [1.0, 1.0])
    assert codes[0, 0] == 7 and not codes[:, 1].any()
    tiny, least = held(np.full((32, 1), 1e-9, np.float32), BLOCKS)
    assert least[0, 0] == np.finfo(np.float16).tiny and not tiny.any(), "no subnormal scale, which GPUs may flush"


def model_of(weight: np.ndarray, bias: np.ndarray | None = None, *, transposed: bool = False) -> onnx.ModelProto:
    """A Gemm called `fc` with a constant matrix (inner, outer) over x of float32 [3, inner]."""
    stored = weight.T if transposed else weight
    tensors = [numpy_helper.from_array(np.ascontiguousarray(stored), "fc.weight")]
    tensors += [numpy_helper.from_array(bias, "fc.bias")] if bias is not None else []
    node = helper.make_node("Gemm", ["x", *[t.name for t in tensors]], ["y"], name="fc", transB=int(transposed))
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, weight.shape[0]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, weight.shape[1]])]
    graph = helper.make_graph([node], "g", infos, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_file_computes_what_codes_and_scales_say(bits: int, transposed: bool) -> None:
    pytest.importorskip("onnxruntime")
    weight, bias = RNG.normal(size=(96, 5)).astype(np.float32), RNG.normal(size=5).astype(np.float32)
    model = model_of(weight, bias, transposed=transposed)
    written = hold_weights(model, {"fc": BLOCKS if bits == 4 else INT8_DIVIDED})
    assert written.executed == {"fc": f"int{bits}-weights"}
    onnx.checker.check_model(model, full_check=True)
    assert "fc.weight" not in {tensor.name for tensor in model.graph.initializer}, "the float matrix is gone"
    codes, scales = held(weight, BLOCKS if bits == 4 else INT8_DIVIDED)
    expected = codes * (np.repeat(scales, 32, axis=0) if bits == 4 else scales)
    x = RNG.normal(size=(3, 96)).astype(np.float32)
    specs = (TensorSpec("x", (3, 96), "float32"),), (TensorSpec("y", (3, 5), "float32"),)
    # ONNX Runtime's own optimiser would round the activations to int8; the reference computes what is written
    with ReferenceSession(*specs, model.SerializeToString()) as session:
        found = session.run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ expected + bias, rtol=1e-4, atol=1e-4)  # sums of 96 in another order


def test_an_odd_number_of_codes_is_packed_with_an_empty_half() -> None:
    weight = RNG.normal(size=(32, 1)).astype(np.float32)
    model = model_of(weight)
    hold_weights(model, {"fc": BLOCKS, "fc_1": BLOCKS})
    (stored,) = (t for t in model.graph.initializer if t.data_type == TensorProto.INT4 and list(t.dims) == [32, 1])
    np.testing.assert_array_equal(numpy_helper.to_array(stored).astype(np.int8), held(weight, BLOCKS)[0])
    (zero,) = (t for t in model.graph.initializer if t.name.endswith(".zero"))
    assert len(zero.raw_data) == 1 and list(zero.dims) == [1, 1]


def test_what_is_not_placed_stays_as_it_was() -> None:
    model = model_of(np.ones((32, 4), np.float32))
    assert hold_weights(model, {}).executed == {}
    assert not any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def test_what_fits_no_block_is_placed_and_written_in_8_bits() -> None:
    from deploykit import pipeline

    layer = torch.nn.Sequential(torch.nn.Linear(128, 48), torch.nn.Linear(48, 4)).eval()
    captured = pipeline.capture(layer, example_inputs=(torch.randn(2, 128),))
    prepared = pipeline.prepare(pipeline.request("rtx-4090", "int4-weight-only"), captured)
    assert [layer.precision for layer in prepared.layers] == ["int4-weights", "int8-weights"]
    written = hold_weights(to_onnx(captured, opset=OPSET), prepared.placed.forms)
    assert written.executed == {layer.name: layer.precision for layer in prepared.layers}


def test_a_matrix_that_two_layers_share_is_stored_once() -> None:
    model = model_of(RNG.normal(size=(32, 32)).astype(np.float32))
    again = onnx.NodeProto()
    again.CopyFrom(model.graph.node[0])
    again.name, again.input[0], again.output[0] = "fc_1", "y", "z"
    model.graph.node.append(again)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 32]))
    hold_weights(model, {"fc": BLOCKS, "fc_1": BLOCKS})
    stored = [t for t in model.graph.initializer if t.data_type == TensorProto.INT4 and list(t.dims) == [32, 32]]
    assert len(stored) == 1
    onnx.checker.check_model(model, full_check=True)
