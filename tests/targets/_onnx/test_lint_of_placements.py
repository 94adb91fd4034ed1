"""Scheme and lint agree: what the placement leaves in float is nothing that the lint asks to be quantized."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.capture import capture
from deploykit.contract.scheme import Scheme
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_targets._onnx.lint import lint, load_rules
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._schemes.gpu import TENSORRT, TENSORRT_FP8


class Residual(nn.Module):
    """Two convolutions and how their results meet; a third one behind, so that int8 is wanted there too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))


class Scaled(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.add(self.conv1(x), self.conv2(x), alpha=0.5))


class ReadElsewhere(Residual):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.conv1(x)
        return self.last(result + y), torch.sin(result)


class BehindActivation(Residual):
    """The fused form is activation behind addition: behind this one there is none to fuse with."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.conv1(x)) + y)


class Plain(Residual):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.conv1(x) + y))


@pytest.mark.parametrize("scheme", [TENSORRT, TENSORRT_FP8], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("model", [Scaled, ReadElsewhere, BehindActivation, Plain])
def test_no_finding_in_a_file_of_our_own(model: type[Residual], scheme: Scheme) -> None:
    torch.manual_seed(0)
    inputs = ("x",) if model is Scaled else ("x", "y")
    captured = capture(model().eval(), example_inputs=tuple(torch.randn(1, 8, 8, 8) for _ in inputs))
    feeds = [{name: torch.randn(1, 8, 8, 8) for name in inputs} for _ in range(4)]
    placed = place(captured, calibrate(captured, feeds, progress=False), scheme)
    file = to_onnx(captured, placed.graph_module, opset=19)
    assert any(node.op_type == "QuantizeLinear" for node in file.graph.node)
    assert lint(file, load_rules("tensorrt")) == ()
