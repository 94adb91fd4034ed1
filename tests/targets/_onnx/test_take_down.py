"""Opset 18 to 17: the same results in ONNX Runtime, and a refusal that says where what has no older form comes from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import deploykit
from deploykit.capture import capture
from deploykit.contract.errors import ConversionError
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.take_down import take_down

sys.path.insert(0, str(Path(__file__).parent))
from lowering import run_onnx

X = torch.linspace(-3, 3, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Apply(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zero padding": lambda x: F.pad(x, (0, 1, 0, 1)),
    "reflection": lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"),
    "mish": F.mish,
    "mean": lambda x: x.mean(1),
    "largest": lambda x: x.amax((1, 3), keepdim=True),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "everything": lambda x: x.amin(),
    "glu": lambda x: F.glu(x, dim=1),
    "parts": lambda x: torch.cat(x.split((1, 3), 1)[::-1], 1),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, size=(9, 11)),
    "scatter": lambda x: x.index_put((torch.tensor([1]),), x[:1] * 2),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_older_file_computes_the_same(name: str) -> None:
    captured = capture(Apply(FORMS[name]).eval(), example_inputs=(X,))
    newer = to_onnx(captured, opset=18)
    bytes_before = newer.SerializeToString(deterministic=True)
    older = take_down(newer, 17, captured)
    assert older.opset_import[0].version == 17
    assert newer.SerializeToString(deterministic=True) == bytes_before
    onnx.checker.check_model(older, full_check=True)
    (want,), (got,) = run_onnx(newer, X), run_onnx(older, X)
    # the same kernels, but for Mish, written out: a few units in the last place of float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shrink = Apply(lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shrink(x)


def test_what_has_no_older_form_is_refused_with_its_place() -> None:
    captured = capture(Smooth().eval(), example_inputs=(X,))
    with pytest.raises(ConversionError) as caught:
        take_down(to_onnx(captured, opset=18), 17, captured)
    for words in ("_upsample_bilinear2d_aa", "in shrink", "test_take_down.py:", "Resize", "opset 17", "antialias"):
        assert words in caught.value.message, words


def test_nodes_inside_a_branch_are_taken_down_too() -> None:
    captured = capture(nn.ReLU().eval(), example_inputs=(X,))
    shape = ["a", "b", "c", "d"]
    result = helper.make_tensor_value_info("t", TensorProto.FLOAT, shape)
    mean = helper.make_graph([helper.make_node("ReduceMean", ["x", "axes"], ["t"])], "then", [], [result])
    same = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "else", [], [result])
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["y"], then_branch=mean, else_branch=same)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    older = take_down(model, 17, captured)
    onnx.checker.check_model(older)
    (got,) = run_onnx(older, X)
    np.testing.assert_allclose(got, X.numpy().mean(1, keepdims=True), rtol=1e-6)


def test_a_model_with_zero_padding_exports_to_the_older_board(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3), nn.Mish()).eval()
    arguments = {"example_inputs": (X,), "output": tmp_path / "a", "profile": False, "progress": False}
    found = deploykit.export(model, target="jetson-xavier", precision="fp32", **arguments)
    assert onnx.load(str(found.entry)).opset_import[0].version == 17
    assert found.parity is not None and found.parity.passed
