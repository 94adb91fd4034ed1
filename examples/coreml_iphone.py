"""Export an image classifier to an iPhone in int8, on any machine; the package is ready for Xcode.

    python examples/coreml_iphone.py [--output FOLDER]

The app feeds an image and reads a label. Here the program is evaluated in PyTorch and compared with the model: that
proves the graph, its weights and its quantization, and says so; on a Mac the same export is run by Core ML.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def main() -> None:
    """Calibrate, export, say what is proved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    output = parser.parse_args().output
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
        nn.Softmax(1),
    ).eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    loader = [torch.rand(1, 3, 64, 64) * 2 - 1 for _ in range(16)]  # your own DataLoader

    artifact = deploykit.export(
        model,
        target="iphone-15",
        precision="int8",
        example_inputs=(x,),
        calibration=loader,
        # pixels of 0 to 255 become -1 to 1
        options={
            "image_input": "input",
            "image_scale": 2 / 255,
            "image_bias": [-1.0],
            "class_labels": ["cat", "dog", "neither"],
        },
        output=output / "iphone-15",
    )

    report, profile = artifact.parity, artifact.profile
    assert report is not None and profile is not None
    print(f"package   {artifact.entry.parent.name}, for {artifact.manifest.metadata['os_floor']} and later")
    print(f"achieved  {artifact.achieved}")
    print(f"parity    {report.sqnr_db:.1f} dB against float PyTorch ({report.evidence})")
    for note in report.notes:
        print(f"          {note}")
    print(f"profile   {profile.latency_ms.p50 * 1e3:.2f} us per run ({profile.evidence})")
    for note in profile.notes:
        print(f"          {note}")


if __name__ == "__main__":
    main()
