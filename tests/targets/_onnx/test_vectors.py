"""Operators that TensorRT refuses on vectors are written over rows; others in forms that every target has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit_targets._onnx.lint import errors_of, lint, load_rules
from deploykit_targets._onnx.lower import to_onnx

ort = pytest.importorskip("onnxruntime")


class Of(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


V = torch.randn(7, generator=torch.Generator().manual_seed(0))
VECTORS: dict[str, Callable[..., Any]] = {
    "argmax": lambda v: (v * 2).argmax(0),
    "argmax of all": lambda v: (v * 2).argmax(),
    "argmin, kept": lambda v: (v * 2).argmin(0, keepdim=True),
    "max": lambda v: (v * 2).max(0),
    "min, kept": lambda v: (v * 2).min(0, keepdim=True),
    "topk": lambda v: (v * 2).topk(3),
    "sort": lambda v: (v * 2).sort(descending=True),
}


def written(function: Callable[..., Any], *inputs: Tensor) -> Any:
    captured = capture(Of(function), example_inputs=inputs)
    model = to_onnx(captured)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {spec.name: x.numpy() for spec, x in zip(captured.inputs, inputs, strict=True)}
    want = function(*inputs)
    got = session.run(None, feeds)
    for one, other in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
    return model


@pytest.mark.parametrize("function", VECTORS.values(), ids=VECTORS)
def test_no_position_is_taken_of_a_vector(function: Callable[..., Any]) -> None:
    model = written(function, V)
    axes = [
        next(item.i for item in node.attribute if item.name == "axis")
        for node in model.graph.node
        if node.op_type in ("ArgMax", "ArgMin", "TopK")
    ]
    assert axes == [1]


def test_the_lint_of_tensorrt_knows_the_rule() -> None:
    rules = load_rules("tensorrt")
    float_, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    node = onnx.helper.make_node("ArgMax", ["x"], ["y"], name="found", axis=0, keepdims=0)
    for shape, broken in (([7], 1), ([1, 7], 0)):
        ends = [
            onnx.helper.make_tensor_value_info("x", float_, shape),
            onnx.helper.make_tensor_value_info("y", int64, shape[1:]),
        ]
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
        assert len(errors_of(lint(model, rules))) == broken
    assert not errors_of(lint(written(lambda v: (v * 2).argmax(0), V), rules))


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0, float("inf")])
def test_distances_of_few_rows(p: float) -> None:
    written(lambda a, b: torch.cdist(a, b, p=p), torch.randn(2, 3, 5), torch.randn(2, 4, 5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2,), (2, 3), ()])
def test_bilinear(bias: bool, shape: tuple[int, ...]) -> None:
    layer = nn.Bilinear(4, 3, 5, bias=bias).eval()
    written(lambda a, b: layer(a, b).detach(), torch.randn(*shape, 4), torch.randn(*shape, 3))


def test_one_hot_is_a_comparison() -> None:
    model = written(lambda i: nn.functional.one_hot(i, 10).float(), torch.tensor([[1, 7], [0, 9]]))
    assert {"Equal"} <= {node.op_type for node in model.graph.node}
