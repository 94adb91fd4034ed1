"""Train a small network on scikit-learn's digits for a target, in Lightning, and export what was trained.

    python examples/lightning_qat.py [--target x86-cpu] [--output FOLDER] [--epochs N]

Three runs of a real Trainer: in float; with a callback that only calibrates; and with one that trains for the target,
exports at the end of `fit` and logs parity. The table has accuracy on images that neither training nor calibration saw.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deploykit
from deploykit.lightning import Calibration, Export, QuantizationAwareTraining


class Digits(LightningModule):  # type: ignore[misc]  # Lightning has no types
    """Depthwise-separable convolutions, as phones have them; nothing in here knows of a target."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr, self.correct, self.count = lr, 0, 0
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()),
            *(nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits."""
        result: Tensor = self.net(x)
        return result

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The loss; it goes through `self(...)`, which is what a callback swaps."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_test_start(self) -> None:
        """Count anew."""
        self.correct = self.count = 0

    def test_step(self, batch: Any, index: int) -> None:
        """Count what is right."""
        self.correct += int((self(batch[0]).argmax(1) == batch[1]).sum())
        self.count += len(batch[1])

    def configure_optimizers(self) -> Any:
        """Over the module's own parameters, in every run."""
        return torch.optim.Adam(self.parameters(), self.lr)

    @property
    def accuracy(self) -> float:
        """Of the last test."""
        return self.correct / self.count


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """1,200 images to train with (and to calibrate), 597 to test."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)[order]
    y = torch.tensor(labels)[order]
    train, test = TensorDataset(x[:1200], y[:1200]), TensorDataset(x[1200:], y[1200:])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=64)


def trainer(output: Path, epochs: int, *callbacks: Any) -> Trainer:
    """A quiet one on the CPU, with a CSV logger."""
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=CSVLogger(output, name="log"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="x86-cpu")
    parser.add_argument("--output", type=Path, default=Path("out/lightning_qat"))
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    train, test = loaders()
    module, rows = Digits(3e-3), []

    trainer(arguments.output, arguments.epochs).fit(module, train)
    trainer(arguments.output, 1).test(module, test, verbose=False)
    rows.append(("float", module.accuracy))

    calibration = Calibration(arguments.target, calibration=train)
    trainer(arguments.output, 1, calibration).test(module, test, verbose=False)
    rows.append(("calibrated", module.accuracy))

    module.lr = 3e-4
    qat = QuantizationAwareTraining(arguments.target)
    export = Export(targets=[arguments.target], output=arguments.output)
    run = trainer(arguments.output, 2, qat, export)
    run.fit(module, train)
    run.test(module, test, verbose=False)
    rows.append(("trained for the target", module.accuracy))

    show(arguments.target, rows, export.artifacts[arguments.target])


def show(target: str, rows: list[tuple[str, float]], artifact: deploykit.Artifact) -> None:
    """The accuracies, and what was proved of the artifact."""
    console = Console()
    table = Table("model", "accuracy", title=f"digits on {target}", box=SIMPLE_HEAD)
    for name, accuracy in rows:
        table.add_row(name, f"{accuracy:.2%}")
    console.print(table)
    parity = artifact.parity
    assert parity is not None
    console.print(f"{artifact.path}: {parity.sqnr_db:.1f} dB against the trained graph, {artifact.status}")


if __name__ == "__main__":
    main()
