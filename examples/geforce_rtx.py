"""Export a model for GeForce RTX cards in int8, and a language model's layers with 4-bit weights, without a GPU.

    pip install "deploykit[tensorrt-rtx]"
    python examples/geforce_rtx.py [--output FOLDER]

NVIDIA's compiler for RTX GPUs runs on any x86-64 machine. So an artifact holds a compiled engine, one for all cards
that were named, and says what each of its layers computes in. One command on the card finishes and proves it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def main() -> None:
    """Export twice, and say what NVIDIA's compiler made of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    output = parser.parse_args().output
    torch.manual_seed(0)
    image = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 16),
    ).eval()
    vision = deploykit.export(
        image,
        target="rtx-4090",
        precision="int8",
        example_inputs=(torch.randn(1, 3, 64, 64),),
        calibration=[torch.randn(1, 3, 64, 64) for _ in range(16)],  # your own DataLoader
        options={"compute_capabilities": ["sm_86", "sm_120"]} if can_compile() else None,  # RTX 30 and 50, too
        output=output / "rtx-vision",
    )
    block = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)).eval()
    language = deploykit.export(
        block,
        target="rtx-3090",
        precision="int4-weight-only",
        example_inputs=(torch.randn(1, 8, 256),),
        output=output / "rtx-language",
    )
    for artifact in (vision, language):
        print(f"{artifact.path.name}: {artifact.status}, {artifact.achieved} (evidence: {artifact.evidence})")
        for note in artifact.achieved.notes:
            print(f"    {note}")
        print(f"    on the card: deploykit build {artifact.path.name} --allow-native  # or sign it, and --key pub.pem")


def can_compile() -> bool:
    """Whether NVIDIA's compiler is here; without it the engine is compiled on the card, for that card."""
    return any(info.can_compile for info in deploykit.targets() if info.toolchain == "tensorrt-rtx")


if __name__ == "__main__":
    main()
