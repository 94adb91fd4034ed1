"""A Fourier transform inside a model is products of matrices, and stays in float: 8 bits hold no spectrum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deploykit_calibration.placement import place
from deploykit_targets.litert.scheme import LITERT


class Listener(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(9, 16, 3), nn.Conv1d(16, 8, 3)
        self.window = nn.Buffer(torch.hann_window(16))

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.stft(x, 16, 4, window=self.window, return_complex=True)
        return self.two(self.one(frames.abs().log1p()).relu())  # type: ignore[no-any-return]


def test_transforms_stay_in_float_and_layers_do_not(case_of: Callable[..., Any]) -> None:
    case = case_of(Listener().eval(), (torch.randn(1, 160),))
    layers = place(case.captured, case.table, LITERT).layers
    spectra = [layer for layer in layers if "spectrum" in layer.reason]
    assert [layer.kind for layer in spectra] == ["matmul"]
    assert spectra[0].macs == 16 * 16 * 41 and spectra[0].by_request
    assert "stft" in spectra[0].reason
    assert {layer.precision for layer in layers if layer.kind == "conv"} == {"int8"}
