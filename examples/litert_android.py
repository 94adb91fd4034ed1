"""Export a model for Android phones in int8, and print what the app's code has to know of the file.

    python examples/litert_android.py [--output FOLDER]

The file takes images with channels last and int8 at both ends, as camera code wants them; scale and zero-point are
printed, and recorded in the manifest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def main() -> None:
    """Calibrate, export, and describe the file."""
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
        target="android",
        precision="int8",
        example_inputs=(torch.randn(1, 3, 64, 64),),
        calibration=loader,
        options={"layout": "nhwc", "io": "int8"},
        profile=False,
        output=output / "android",
    )

    report = artifact.parity
    assert report is not None
    print(f"file      {artifact.entry.name}, {artifact.size_bytes / 1024:.1f} KiB")
    print(f"achieved  {artifact.achieved}")
    print(f"parity    {report.sqnr_db:.1f} dB against float PyTorch ({report.evidence})")
    for kind in ("inputs", "outputs"):
        for tensor in artifact.manifest.metadata["file"][kind]:
            params = f"scale {tensor['scale']:.6g}, zero-point {tensor['zero_point']}"
            print(f"{kind[:-1]:9} {tensor['name']}: {tensor['dtype']}{tensor['shape']}, {params}")


if __name__ == "__main__":
    main()
