"""Operators with a body (Loop, If): names survive renaming, splicing and clean-up."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.retype import FLOAT16, retype
from deploykit_targets._onnx.values import reads, rename_reads, scope_names


def _if_node() -> onnx.NodeProto:
    """If(condition) -> outer + inner, or outer; `inner` and `sum` are the body's own."""
    inner = helper.make_tensor("inner", TensorProto.FLOAT, [1], [2.0])
    result = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])
    then = helper.make_graph([helper.make_node("Add", ["outer", "inner"], ["sum"])], "then", [], [result], [inner])
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, [1])
    other = helper.make_graph([helper.make_node("Identity", ["outer"], ["same"])], "else", [], [same])
    return helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=other)


def test_a_body_reads_what_is_around_it() -> None:
    node = _if_node()
    assert reads(node) == {"condition", "outer"}
    rename_reads(node, {"outer": "x", "condition": "c", "inner": "not me"})
    assert reads(node) == {"c", "x"}
    assert node.attribute[1].g.node[0].input[0] == "x" or node.attribute[0].g.node[0].input[0] == "x"


def test_what_a_body_defines_gets_a_name_of_its_own() -> None:
    node = _if_node()
    scope_names(node, lambda name: f"bag.{name}")
    assert reads(node) == {"condition", "outer"}
    (then,) = [item.g for item in node.attribute if item.name == "then_branch"]
    assert then.initializer[0].name == "bag.inner"
    assert list(then.node[0].input) == ["outer", "bag.inner"]
    assert then.output[0].name == then.node[0].output[0] == "bag.sum"


class DynamicBags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.EmbeddingBag(9, 4, mode="mean"), nn.EmbeddingBag(9, 4, mode="max")

    def forward(self, ids: Tensor) -> Tensor:
        return self.one(ids) + self.two(ids)  # type: ignore[no-any-return]


def test_operators_with_a_body_equal_pytorch() -> None:
    """torch.onnx writes each bag as a loop that holds an If; two of them, so that names of their bodies meet."""
    model, other = DynamicBags().eval(), torch.arange(12).view(3, 4) % 9
    captured = capture(model, example_inputs=(torch.arange(8).view(2, 4),), dynamic_batch=True)
    lowered = to_onnx(captured)
    onnx.checker.check_model(lowered, full_check=True)
    assert sum(node.op_type == "Loop" for node in lowered.graph.node) == 2
    session = onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = model(other).numpy()
    np.testing.assert_allclose(session.run(None, {"ids": other.numpy()})[0], want, rtol=1e-5, atol=1e-6)


def test_a_body_stays_float32_in_a_float16_model() -> None:
    """It reads the narrow tables around it through casts."""
    model, ids = DynamicBags().eval(), torch.arange(12).view(3, 4) % 9
    lowered = to_onnx(capture(model, example_inputs=(torch.arange(8).view(2, 4),), dynamic_batch=True))
    retype(lowered, FLOAT16)
    onnx.checker.check_model(lowered, full_check=True)
    session = onnxruntime.InferenceSession(lowered.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    assert np.allclose(found, model(ids).detach().numpy(), atol=1e-2)


class Resynthesis(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(16)
        frames = torch.stft(x, 16, 4, window=window, return_complex=True) * 0.5
        return torch.istft(frames, 16, 4, window=window)


def test_indices_of_spliced_operators_are_of_the_type_that_the_standard_has() -> None:
    """torch.onnx writes `istft` with a scatter whose indices are int32 here, which no runtime opens."""
    model, x = Resynthesis().eval(), torch.linspace(-1, 1, 64)[None].cos()
    lowered = to_onnx(capture(model, example_inputs=(x,)))
    session = onnxruntime.InferenceSession(lowered.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.allclose(found, model(x).numpy(), atol=1e-5)
