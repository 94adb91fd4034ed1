"""What layers move, against sizes counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit_targets._onnx.traffic import traffic_of


class Residual(nn.Module):
    """pad -> conv -> relu, then a residual block, then pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.first(nn.functional.pad(x, (1, 1, 1, 1))))
        b = torch.relu(self.second(a) + a)
        return torch.softmax(self.head(b.mean((2, 3))), 1)


def test_a_residual_addition_reads_its_other_operand_alone() -> None:
    found = traffic_of(capture(Residual().eval(), example_inputs=(torch.zeros(1, 3, 16, 16),)))
    first, second, add, mean, head = found.values()
    image, tensor = 3 * 16 * 16 * 4, 8 * 16 * 16
    assert first == (0, tensor, image), "padding and relu are its own; the input is of the network, in bytes"
    assert second == (tensor, 0, 0), "what it computes goes into the addition"
    assert add == (tensor, tensor, 0)
    assert mean == (tensor, 8, 0)
    assert head == (8, 0, 10 * 4), "softmax is its own, and gives the network's output"
