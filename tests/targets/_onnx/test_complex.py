"""Rotary embeddings written with complex numbers: constants of complex numbers become pairs, as torch.onnx has them."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit_targets._onnx.lower import to_onnx


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)
        angles = torch.arange(6.0)[:, None] * 0.3 ** torch.arange(4.0)
        self.turns = nn.Buffer(torch.polar(torch.ones(6, 4), angles))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(self.one(x).reshape(2, 6, 4, 2)) * self.turns
        return self.two(torch.view_as_real(turned).flatten(-2))  # type: ignore[no-any-return]


def test_a_constant_of_complex_numbers() -> None:
    model, x = Rotary().eval(), torch.randn(2, 6, 8)
    lowered = to_onnx(capture(model, example_inputs=(torch.randn(2, 6, 8),)))
    session = onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], model(x).numpy(), rtol=1e-4, atol=1e-5)
