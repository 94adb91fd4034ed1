"""Export a model to an NVIDIA Jetson Orin in int8, on any machine; then one command on the board.

    python examples/jetson_orin.py [--output FOLDER]

TensorRT builds engines only on the GPU they run on. What is made here is everything up to that: the quantized ONNX
file, checked against TensorRT's rules and run in ONNX Runtime as a reference, the calibration table, golden data, and
the program of the build. With `pip install "deploykit[tensorrt-compile]"` NVIDIA's own compiler reads the file here,
too, and lists what each layer of the engine computes in, which is then counted and printed:

    NVIDIA's compiler: 2 of 2 layers in Int8, 5 fused chains, 0 reformats

(the two convolutions; the classifier is too small to be faster in int8, and a step of a chain). The program ends with
the commands for the board.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import deploykit


def main() -> None:
    """Calibrate, export, say what is proved and what is left to do."""
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
        nn.Linear(32, 10),
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    loader = [torch.randn(1, 3, 64, 64) for _ in range(16)]  # your own DataLoader

    artifact = deploykit.export(
        model,
        target="jetson-orin",
        precision="int8",
        example_inputs=(x,),
        calibration=loader,
        output=output / "jetson-orin",
    )

    report, estimate = artifact.parity, artifact.profile
    assert report is not None and estimate is not None
    print(f"status    {artifact.status}")
    print(f"achieved  {artifact.achieved} (evidence: {artifact.evidence})")
    for note in artifact.achieved.notes:  # with deploykit[tensorrt-compile], what NVIDIA's compiler made of the file
        print(f"          {note}")
    print(f"parity    {report.sqnr_db:.1f} dB against float PyTorch ({report.evidence})")
    for note in report.notes:
        print(f"          {note}")
    print(f"profile   at least {estimate.latency_ms.p50 * 1e3:.1f} us per run ({estimate.evidence})")
    if artifact.manifest.build is not None:
        name = artifact.path.name
        print(f"\nOn the board, with {name}/ copied there:\n")
        print(f"    deploykit build {name}                # builds, checks the golden data, profiles, publishes")
        print(f"    cd {name} && python3 build_engine.py  # the same without deploykit: TensorRT and NumPy are enough")


if __name__ == "__main__":
    main()
