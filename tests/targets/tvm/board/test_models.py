"""Whole models, quantised, on the emulated boards: what runs there is what was simulated, up to roundings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import deploykit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
if not all(map(shutil.which, ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"))):
    pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static", allow_module_level=True)

nn = torch.nn
# One LSB here and there: of a dozen int8 layers that leaves at least this between simulation and artifact.
SIMULATION_DB = 35.0


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    """Depthwise and pointwise convolution with a residual addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Any) -> Any:
        return torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))


class Attention(nn.Module):  # type: ignore[misc, name-defined]
    """A transformer's block with two heads."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        split = self.qkv(self.norms[0](x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(self.norms[1](x))


def convolutional() -> tuple[Any, list[Any]]:
    stem = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(*stem, Residual(16), Residual(16), *head), [torch.randn(1, 3, 32, 32) for _ in range(8)]


def transformer() -> tuple[Any, list[Any]]:
    model = nn.Sequential(nn.Embedding(50, 32), Attention(), Attention(), nn.Linear(32, 5))
    return model, [torch.randint(0, 50, (1, 9)) for _ in range(8)]


@pytest.mark.parametrize(
    ("make", "device"),
    [
        (convolutional, "raspberry-pi-5"),
        (transformer, "raspberry-pi-4"),
        pytest.param(convolutional, "raspberry-pi-4", marks=pytest.mark.nightly),
        pytest.param(transformer, "raspberry-pi-5", marks=pytest.mark.nightly),
    ],
)
def test_a_model_on_a_board(make: Any, device: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = make()
    artifact = deploykit.export(
        model.eval(),
        target=device,
        precision="int8",
        example_inputs=data[0],
        calibration=data,
        output=tmp_path / "artifact",
        profile=False,
    )
    assert artifact.achieved.macs_fraction("int8") == 1
    assert artifact.parity.evidence == "emulator"
    simulated = artifact.parity.lowering
    assert simulated.candidate == "artifact" and simulated.worst.sqnr_db >= SIMULATION_DB
    assert artifact.verify().sqnr_db >= 100  # the emulator gives the same again
    files = artifact.manifest.metadata["library"]["runtime_files"]
    assert sum(files.values()) < 2_000_000 and set(files) == {"model.so", "run", "constants.bin"}
