"""Operators that PyTorch's own exporter writes: its table of translations is made once, and left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from deploykit.capture import capture
from deploykit_targets._onnx import fallback
from deploykit_targets._onnx.lower import to_onnx


class Diagonals(nn.Module):
    """Two operators that our table lacks."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.diagonal(x, 0, 1, 2), torch.hypot(x, x * 2)


def written() -> onnx.ModelProto:
    captured = capture(Diagonals().eval(), example_inputs=(torch.ones(1, 4, 4),))
    return to_onnx(captured, captured.graph_module, opset=21)


def test_the_table_is_made_once_and_pytorch_has_its_own_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fallback._translations.cache_clear()
    made: list[Any] = []
    own = ONNXRegistry.__dict__["from_torchlib"]

    def counted(cls: Any, *given: Any, **named: Any) -> Any:
        made.append(own.__get__(None, cls)(*given, **named))
        return made[-1]

    counting = classmethod(counted)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", counting)
    written()
    assert len(made) == 1, "of two operators"
    assert ONNXRegistry.__dict__["from_torchlib"] is counting


def test_what_one_call_adds_to_its_table_is_not_in_that_of_the_next() -> None:
    with fallback._kept_translations():
        first, second = ONNXRegistry.from_torchlib(), ONNXRegistry.from_torchlib()
        first.register_op(torch.ops.aten.add.Tensor, lambda x: x, is_complex=False)
        third = ONNXRegistry.from_torchlib()
    count = [len(each.get_decomps(torch.ops.aten.add.Tensor)) for each in (first, second, third)]
    assert count[0] == count[1] + 1 and count[1] == count[2]


def test_the_operators_compute_what_pytorch_does() -> None:
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    x = np.random.default_rng(0).normal(size=(1, 4, 4)).astype(np.float32)
    found = runtime.InferenceSession(written().SerializeToString()).run(None, {"x": x})
    for wanted, got in zip(Diagonals()(torch.from_numpy(x)), found, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-6)
