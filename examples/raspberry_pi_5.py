"""Export a model for a Raspberry Pi 5 in int8, prove it on the emulated board, and print how it multiplies.

    python examples/raspberry_pi_5.py [--output FOLDER]

Needs no board: the library is compiled for its Cortex-A76 here and run under emulation, whose results count and whose
times do not. On the board itself: `deploykit.load("raspberry-pi-5").open()`, or from here `deploykit run --board`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def main() -> None:
    """Calibrate, export, and describe what will run on the board."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    output = parser.parse_args().output
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()
    loader = [torch.randn(1, 3, 64, 64) for _ in range(16)]  # your own DataLoader

    artifact = deploykit.export(
        model,
        target="raspberry-pi-5",
        precision="int8",
        example_inputs=(torch.randn(1, 3, 64, 64),),
        calibration=loader,
        profile=False,
        output=output / "raspberry-pi-5",
    )

    report = artifact.parity
    assert report is not None
    print(f"achieved  {artifact.achieved}")
    print(f"parity    {report.sqnr_db:.1f} dB against float PyTorch ({report.evidence})")
    for name, size in artifact.manifest.metadata["library"]["runtime_files"].items():
        print(f"file      {name}, {size / 1024:.1f} KiB")
    for layer, instructions in artifact.manifest.metadata["instructions"].items():
        print(f"layer     {layer}: {instructions}")


if __name__ == "__main__":
    main()
