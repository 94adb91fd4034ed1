"""A weight and a zero point for each product: no number changes, nothing is stored twice, and sums can be exact."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from deploykit.capture import capture
from deploykit.contract.formats import INT8_SYMMETRIC
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.own_weights import own_weights
from deploykit_targets._onnx.runtime import EXACT
from deploykit_targets._schemes.x86 import ONNX_X86

sys.path.insert(0, str(Path(__file__).parent))
from cpu_cases import CASES
from lowering import sqnr_db


def lowered(name: str, *, per_tensor: bool = False) -> tuple[onnx.ModelProto, torch.Tensor, np.ndarray]:
    """The q/dq file of a case, an input, and what its simulation gives for it."""
    torch.manual_seed(0)
    model, example = CASES[name].model().eval(), CASES[name].example
    captured = capture(model, example_inputs=example(0))
    scheme = replace(ONNX_X86, weight=INT8_SYMMETRIC) if per_tensor else ONNX_X86
    feeds = [{captured.inputs[0].name: example(seed)[0]} for seed in range(4)]
    placed = place(captured, calibrate(captured, feeds, progress=False), scheme)
    x = example(0)[0]
    with torch.no_grad():
        simulated = placed.graph_module(x)[0].numpy()
    return to_onnx(captured, placed.graph_module), x, simulated


def run(model: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    """In the exact form, on whatever CPU this is."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return result


@pytest.mark.parametrize("per_tensor", [False, True], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("name", ["linear", "batch", "groups", "shared", "shared_conv", "both_ways", "stack"])
def test_the_exact_form_equals_the_simulation(name: str, per_tensor: bool) -> None:
    model, x, simulated = lowered(name, per_tensor=per_tensor)
    own_weights(model.graph)
    assert sqnr_db(simulated, run(model, x)) > 45  # a rounding tie now and then; else float32 rounding


@pytest.mark.parametrize("name", ["shared", "shared_conv", "two_activations"])
def test_no_two_products_share_and_nothing_is_stored_twice(name: str) -> None:
    model, _, _ = lowered(name)
    before = model.ByteSize()
    own_weights(model.graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and stored[node.input[2]].data_type == onnx.TensorProto.INT8
    ]
    assert len({node.input[0] for node in weights}) == len({node.input[2] for node in weights}) == len(weights) > 1
    assert model.ByteSize() < 1.1 * before + 2000
    onnx.checker.check_model(model, full_check=True)


def test_a_graph_without_int8_weights_is_left_alone_in_whatever_order() -> None:
    nodes = [helper.make_node("Relu", ["y"], ["z"]), helper.make_node("Add", ["x", "one"], ["y"])]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    result = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2])
    one = numpy_helper.from_array(np.ones(2, np.float32), "one")
    graph = helper.make_graph(nodes, "unsorted", [value], [result], [one])
    before = copy.deepcopy(graph)
    own_weights(graph)
    assert graph == before
