"""float16 and bfloat16 forms of an ONNX file, compared with NumPy's own rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.contract.errors import ConversionError
from deploykit_targets._onnx.retype import BFLOAT16, FLOAT16, emulated, retype

X = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)


def linear(weight: np.ndarray = W, *nodes: onnx.NodeProto, more: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    """y = x @ w, with q/dq nodes or others where given."""
    specs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in ("x", "y")]
    written = list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    constants = [numpy_helper.from_array(weight, "w"), *more]
    graph = helper.make_graph(written, "g", specs[:1], specs[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def test_float16_keeps_the_interface_and_rounds_the_rest() -> None:
    model = linear()
    retype(model, FLOAT16)
    assert [info.type.tensor_type.elem_type for info in (*model.graph.input, *model.graph.output)] == [1, 1]
    assert model.graph.initializer[0].data_type == FLOAT16
    expected = (X.astype(np.float16).astype(np.float32) @ W.astype(np.float16).astype(np.float32)).astype(np.float16)
    np.testing.assert_allclose(run(model), expected, rtol=2e-3, atol=2e-3)  # the sum's order may differ


def test_bfloat16_is_emulated_with_the_rounding_of_every_value() -> None:
    model = linear()
    retype(model, BFLOAT16)
    rounded = [array.astype(ml_dtypes.bfloat16).astype(np.float32) for array in (X, W)]
    expected = (rounded[0] @ rounded[1]).astype(ml_dtypes.bfloat16).astype(np.float32)
    got = run(emulated(model))
    assert np.array_equal(got, got.astype(ml_dtypes.bfloat16).astype(np.float32)), "the output is held in bfloat16"
    np.testing.assert_allclose(got, expected, rtol=1e-2)  # one unit in the last place of bfloat16 is 0.8 %


def test_a_weight_beyond_the_range_is_named_and_a_mask_is_not() -> None:
    with pytest.raises(ConversionError, match="'w' exceed the range of float16"):
        retype(linear(np.full((8, 8), 7e4, np.float32)), FLOAT16)
    masked = linear(np.full((8, 8), -np.inf, np.float32))
    retype(masked, FLOAT16)
    assert numpy_helper.to_array(masked.graph.initializer[0]).min() == -65504.0


def test_scales_of_resize_stay_float32_even_where_a_weight_shares_them() -> None:
    sizes = numpy_helper.from_array(np.array([1.0, 1.0], np.float32), "ones")
    nodes = [
        helper.make_node("Resize", ["x", "", "ones"], ["r"], name="resize", mode="nearest"),
        helper.make_node("Mul", ["r", "scalar"], ["m"], name="mul"),
        helper.make_node("MatMul", ["m", "w"], ["y"], name="product"),
    ]
    model = linear(W, *nodes, more=(sizes, numpy_helper.from_array(np.float32(1), "scalar")))
    retype(model, FLOAT16)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["ones.float"] == TensorProto.FLOAT
    assert types["scalar"] == FLOAT16
    np.testing.assert_allclose(run(model), X @ W, rtol=0.02, atol=0.02)


def quantized(weight: np.ndarray = W, *, zero: int = 0, name: str = "linear.matmul") -> onnx.ModelProto:
    x_scale = np.float32(np.abs(X).max() / 127)
    w_scale = (np.abs(weight).max(0) / 127).astype(np.float32)
    codes = np.rint(weight / w_scale).astype(np.int8)
    more = (
        numpy_helper.from_array(x_scale, "xs"),
        numpy_helper.from_array(np.int8(zero), "xz"),
        numpy_helper.from_array(w_scale, "ws"),
        numpy_helper.from_array(np.zeros(8, np.int8), "wz"),
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xdq"], name="xdq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wdq"], name="wdq", axis=1),
        helper.make_node("MatMul", ["xdq", "wdq"], ["y"], name=name),
    ]
    return linear(codes, *nodes, more=more)
