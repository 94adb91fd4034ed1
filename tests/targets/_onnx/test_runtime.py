"""ONNX Runtime sessions, time per operator, counting and checking, on small hand-made graphs."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from deploykit.contract.errors import ConversionError, DeviceError
from deploykit_targets._onnx.check import check
from deploykit_targets._onnx.count import count_optimised
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.runtime import _by_run, captured_name, inference_session, op_times, optimised_model

sys.path.insert(0, str(Path(__file__).parent))
from lowering import flat


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    return to_onnx(flat(layers, torch.randn(1, 3, 8, 8)))


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {model.graph.input[0].name: np.zeros((1, 3, 8, 8), np.float32)}


def test_session_states_its_threads(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    for source in (path, str(path), model.SerializeToString()):
        session = inference_session(source, threads=1)
        assert session.get_session_options().intra_op_num_threads == 1
        assert session.run(None, feeds(model))[0].shape == (1, 5)


def test_damaged_files_and_absent_providers_are_errors(model: onnx.ModelProto) -> None:
    with pytest.raises(ConversionError, match="refuses"):
        inference_session(b"not a model", threads=1)
    with pytest.raises(DeviceError, match="MIGraphX"):
        inference_session(
            model.SerializeToString(), threads=1, providers=("MIGraphXExecutionProvider", "CPUExecutionProvider")
        )


def test_optimised_model_leaves_no_file(model: onnx.ModelProto) -> None:
    optimised = onnx.load_from_string(optimised_model(model.SerializeToString()))
    assert "Relu" not in {node.op_type for node in optimised.graph.node}  # fused into the convolution


def test_calls_of_a_node_are_summed_by_run_and_one_slow_run_does_not_count() -> None:
    assert _by_run([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3) == [3.0, 7.0, 11.0]
    assert median(_by_run([1.0, 1.0, 900.0], 3)) == 1.0
    assert _by_run([5.0], 4) == [5.0]  # called in one run alone


def test_op_times_name_modules(model: onnx.ModelProto) -> None:
    paths = {"conv2d": "0", "relu": "1", "linear": "3"}
    times = op_times(model.SerializeToString(), feeds(model), threads=1, runs=3, module_paths=paths)
    found = {time.name: time.module_path for time in times}
    assert found["relu"] == "1" and found["linear"] == "3"  # ONNX Runtime fuses the relu in and keeps its name
    assert all(time.median_us >= 0 for time in times)
    assert [time.median_us for time in times] == sorted((time.median_us for time in times), reverse=True)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("conv2d_3", "conv2d_3"),
        ("conv2d_3_token_15", "conv2d_3"),
        ("conv2d_1_nchwc", "conv2d"),
        ("linear.matmul_0/MatMulAddFusion", "linear"),
        ("linear.matmul_0_quant", "linear"),
        ("fused linear", "linear"),
        ("InsertedPrecisionFreeCast_conv2d_nchwc", "conv2d"),
        ("SkipLayerNormalization_token_3", ""),
    ],
)
def test_captured_name(name: str, want: str) -> None:
    assert captured_name(name, {"conv2d", "conv2d_3", "linear"}) == want


def quantized_weight_graph() -> onnx.ModelProto:
    """A Gemm whose weights are dequantised in every run: what a missed fusion leaves."""
    weight = helper.make_tensor("w", TensorProto.INT8, [4, 2], [1] * 8)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], name="d"),
        helper.make_node("Gemm", ["x", "d"], ["y"], name="linear"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", 4), ("y", 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, scale, zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_count_lists_missed_fusions() -> None:
    counted = count_optimised(quantized_weight_graph(), ["linear"])
    assert counted.executed == {"linear": "float32"}
    assert counted.float_beside_dequantise == ("linear",)


def rules(model: onnx.ModelProto) -> set[str]:
    return {finding.rule for finding in check(model)}


def test_check_accepts_a_sound_file() -> None:
    assert rules(quantized_weight_graph()) == set()


def test_check_finds_what_is_wrong() -> None:
    implicit = quantized_weight_graph()
    del implicit.graph.node[0].input[2]
    assert rules(implicit) == {"zero-point"}

    zero_scale = quantized_weight_graph()
    zero_scale.graph.initializer[1].float_data[0] = 0.0
    assert rules(zero_scale) == {"scale"}

    traced = quantized_weight_graph()
    traced.graph.node[0].doc_string = "/home/someone/model.py"
    traced.graph.value_info.add(name="d")
    traced.graph.value_info[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert rules(traced) == {"no-traces"}

    unnamed = quantized_weight_graph()
    unnamed.graph.node[0].name = ""
    unnamed.opset_import[0].version = 13
    assert rules(unnamed) == {"names", "versions"}
