"""Train a small CNN on scikit-learn's digits, export it to `x86-cpu`, and compare the artifacts in one table.

    python examples/digits_x86.py [--output FOLDER] [--epochs N]

Training, calibration and test images are disjoint: accuracy is measured on images that neither training nor
calibration has seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import deploykit
from deploykit.pipeline.progress import Lines, Steps

with Steps(enabled=Lines(stream=sys.stdout)).step("importing PyTorch"):  # which takes seconds
    import numpy as np
    import torch
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from sklearn.datasets import load_digits
    from torch import Tensor, nn

EXPORTS = (("x86-cpu", "fp32"), ("x86-cpu", "int8"), ("x86-cpu:openvino", "int8"))


@dataclass(frozen=True)
class Digits:
    """Images float32 (n, 1, 8, 8) from 0 to 1 with labels int64 (n,), in three disjoint parts."""

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load() -> Digits:
    """The 1,797 scans that scikit-learn ships, shuffled with a fixed seed: 1,200 / 100 / 497."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order], dtype=torch.int64)
    return Digits((x[:1200], y[:1200]), (x[1200:1300], y[1200:1300]), (x[1300:], y[1300:]))


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape."""
        return torch.relu(x + self.body(x))


def make_model() -> nn.Sequential:
    """A residual CNN: images (n, 1, 8, 8) to class scores (n, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        Residual(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(64, 10),
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int) -> None:
    """Adam on cross-entropy, in place; leaves the model in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    steps = Steps(enabled=Lines(stream=sys.stdout))
    for epoch in range(epochs):
        with steps.step(f"training, epoch {epoch + 1} of {epochs}"):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    model.eval()


def batches(images: Tensor, labels: Tensor, size: int = 20) -> Iterator[tuple[Tensor, Tensor]]:
    """`(images, labels)` pairs, as a DataLoader gives them; calibration looks at the images only."""
    yield from zip(images.split(size), labels.split(size), strict=True)


def accuracy(session: deploykit.Session, images: Tensor, labels: Tensor) -> float:
    """Share of images whose class is right, from 0 to 1."""
    name, output = session.inputs[0].name, session.outputs[0].name
    scores = session.run({name: images.numpy()})[output]
    return float((scores.argmax(axis=1) == labels.numpy()).mean())


def export_all(model: nn.Module, digits: Digits, output: Path) -> list[deploykit.Artifact]:
    """Export to every target of `EXPORTS` whose packages are installed; each artifact has passed its gates."""
    installed = {info.name for info in deploykit.targets() if info.can_export}
    return [
        deploykit.export(
            model,
            target=target,
            precision=precision,
            example_inputs=(digits.test[0][:1],),
            dynamic_batch=True,
            calibration=list(batches(*digits.calibration)),
            evaluate=lambda session: accuracy(session, *digits.test),
            max_drop=0.01,
            progress=Lines(f"{target} {precision}: ", stream=sys.stdout),
            output=output / f"digits-{target.replace(':', '-')}-{precision}",
        )
        for target, precision in EXPORTS
        if target in installed
    ]


def comparison(artifacts: list[deploykit.Artifact]) -> Table:
    """One row per artifact; `speed` is against the fp32 build of the same toolchain, measured in turns."""
    heads = ("target", "precision", "int8", "kB", "p50 ms", "speed", "SQNR dB", "accuracy")
    table = Table(*heads, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for artifact in artifacts:
        parity, profile = artifact.parity, artifact.profile
        if parity is None or parity.metric is None or profile is None:
            raise RuntimeError(f"{artifact} was exported without parity or profile")
        figures = (
            f"{artifact.achieved.macs_fraction('int8'):.0%}",
            f"{profile.size_bytes / 1e3:.0f}",
            f"{profile.latency_ms.p50:.3f}",
            "-" if profile.worth_it is None else f"{profile.worth_it:.2f} x",
            f"{parity.sqnr_db:.1f}",
            f"{parity.metric.artifact:.2%}",
        )
        table.add_row(artifact.target, artifact.precision, *figures)
    return table


def command() -> str:
    """The command line as it can be typed in the shell that this was started from."""
    if shutil.which("deploykit") and "VIRTUAL_ENV" in os.environ:
        return "deploykit"
    return f"{os.path.relpath(sys.executable)} -m deploykit"


def main() -> None:
    """Train, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # images of 8 x 8: a second thread costs more than it brings
    digits, model = load(), make_model()
    train(model, *digits.train, epochs=arguments.epochs)
    artifacts = export_all(model, digits, arguments.output)
    console = Console()
    console.print(comparison(artifacts))
    metric = artifacts[0].parity and artifacts[0].parity.metric
    if metric:
        console.print(f"float PyTorch: {metric.reference:.2%} of {len(digits.test[1])} unseen images")
    for artifact in artifacts:
        console.print(f"[dim]{command()} inspect {artifact.path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
