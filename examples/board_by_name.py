"""Export a model, then verify and profile it on a board that `deploykit device add` has written down.

    deploykit device add lab me@board
    python examples/board_by_name.py lab [--output FOLDER] [--sustained-s SECONDS]

The board needs ssh and `pip install "deploykit[onnxruntime-runtime]"`; PyTorch stays here. The model is for x86; for a
board with another processor, name its device in `target`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def main() -> None:
    """Export here, and prove it there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", help="of the board, as in `deploykit device list`")
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--sustained-s", type=float, default=0.0, help="600 compares minute 10 with minute 1")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    loader = [torch.randn(1, 3, 32, 32) for _ in range(16)]  # your own DataLoader
    artifact = deploykit.export(
        model,
        target="x86-cpu",
        precision="int8",
        example_inputs=(loader[0],),
        calibration=loader,
        output=given.output / "model",
        profile=False,
    )

    board = deploykit.device(given.name)
    with board.leased():  # nobody else uses it meanwhile
        there = board.verify(artifact)
        profile = board.profile(artifact, sustained=given.sustained_s)
    artifact.save_profile(profile)
    print(f"{given.name} gives the same outputs: SQNR {there.sqnr_db:.1f} dB")
    print(f"p50 {profile.latency_ms.p50:.3f} ms, evidence: {profile.evidence}")
    for name, told in profile.conditions.rows() if profile.conditions else ():
        print(f"{name}: {told}")
    if profile.sustained:
        print(f"after {profile.sustained.seconds:.0f} s a run takes {profile.sustained.slowdown:.2f} times as long")


if __name__ == "__main__":
    main()
