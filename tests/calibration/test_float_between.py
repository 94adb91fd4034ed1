"""What computes in float beside the integer layers of a placement, and what it reads and writes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit.contract.scheme import Scheme
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86
from deploykit_targets.litert.scheme import LITERT


class Between(nn.Module):
    """A function of a convolution's result, and a convolution of that."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x))).flatten(1).mean(1)


def beside(function: Callable[[Tensor], Tensor], scheme: Scheme = ONNX_X86) -> list[tuple[str, int, int]]:
    torch.manual_seed(0)
    captured = capture(Between(function).eval(), example_inputs=(torch.randn(1, 3, 5, 5),))
    table = calibrate(captured, [{"x": torch.randn(1, 3, 5, 5)} for _ in range(2)], progress=False)
    found = place(captured, table, scheme).float_activations
    return [(each.op, each.elements, each.bytes) for each in found if each.op != "mean"]


def test_an_activation_that_no_integer_kernel_has_is_listed() -> None:
    """4 channels of 5 x 5, read once and written once, in float32."""
    assert beside(F.silu) == [("silu", 200, 800)]
    assert beside(F.hardswish) == [("hardswish", 200, 800)]
    assert beside(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))) == [("sigmoid", 8, 32)]


def test_what_the_kernel_applies_or_follows_is_not() -> None:
    assert beside(F.relu) == []
    assert beside(F.silu, TENSORRT) == []
    assert beside(F.hardswish, LITERT) == []


def test_what_moves_data_is_not() -> None:
    assert beside(lambda x: x.permute(0, 1, 3, 2)) == []
