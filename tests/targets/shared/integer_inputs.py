"""Cameras and microphones: models whose input is integers, with the normalisation inside, as edge devices feed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deploykit


class Camera(nn.Module):
    """Pixels as they come, scaled inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(image.float() / 255)))


class Microphone(nn.Module):
    """16-bit samples of sound."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 16, 9, 4), nn.Conv1d(16, 16, 5)

    def forward(self, sound: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(sound.to(torch.float32) / 32768)))


CASES = {
    "camera": (Camera, (0, 256), (1, 3, 16, 16), torch.uint8),
    "microphone": (Microphone, (-(2**15), 2**15), (1, 1, 200), torch.int16),
}


def check(name: str, target: str, output: Path) -> None:
    """Export in int8: the artifact takes the integers themselves, and both convolutions compute in int8."""
    make, (low, high), shape, dtype = CASES[name]
    generator = torch.Generator().manual_seed(0)
    data: list[Any] = [torch.randint(low, high, shape, generator=generator).to(dtype) for _ in range(8)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    artifact = deploykit.export(
        model, target, "int8", example_inputs=(data[0],), calibration=data, output=output, profile=False, progress=False
    )
    assert artifact.inputs[0].dtype == str(dtype).removeprefix("torch.")
    layers = {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.macs}
    assert layers == {"first": "int8", "second": "int8"}
    assert artifact.parity is not None and artifact.parity.passed
