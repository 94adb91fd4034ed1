"""Halve a network's channels, let it learn from what it was, train it for `x86-cpu` where needed, and export it.

    python examples/prune_distil_export.py [--output FOLDER] [--ratio 0.5] [--epochs 6]

Each step first by itself, then all of them in one call, `deploykit.compress`, which keeps what its own digits say is
best; the accuracy at the end is of digits that nothing has seen.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import deploykit

Set = tuple[Tensor, Tensor]
TARGET = "x86-cpu"


def load() -> tuple[Set, Set, Set]:
    """Scikit-learn's 1,797 scans, float32 (n, 1, 8, 8) from 0 to 1, with labels: 1,000, 300 and 497 of them."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order], dtype=torch.int64)
    return (x[:1000], y[:1000]), (x[1000:1300], y[1000:1300]), (x[1300:], y[1300:])


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity: their channels must go together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.b, self.nb = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape."""
        return torch.relu(x + self.nb(self.b(torch.relu(self.na(self.a(x))))))


def make_model() -> nn.Sequential:
    """Images (n, 1, 8, 8) to class scores (n, 10)."""
    stem = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
    return nn.Sequential(
        *stem, Residual(64), nn.MaxPool2d(2), Residual(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


def batches(data: Set, size: int = 50) -> list[Set]:
    """Batches in a fixed order."""
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def train(model: nn.Module, data: Set, *, epochs: int) -> nn.Module:
    """Adam on cross-entropy, in place."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for x, y in batches(data):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, data: Set) -> float:
    """Share of images whose class is right, from 0 to 1."""
    with torch.no_grad():
        return float((model.eval()(data[0]).argmax(1) == data[1]).float().mean())


def accuracy_of(session: deploykit.Session, data: Set) -> float:
    """The same, of an artifact that is open."""
    scores = session.run({session.inputs[0].name: data[0].numpy()})[session.outputs[0].name]
    return float((scores.argmax(axis=1) == data[1].numpy()).mean())


def step_by_step(model: nn.Module, train_set: Set, test: Set, *, ratio: float, epochs: int) -> None:
    """Prune and distil, as one does with a training loop of one's own around them."""
    student, example = copy.deepcopy(model), (train_set[0][:1],)
    report = deploykit.prune(student, example, ratio, target=TARGET, calibration=[train_set[0][:200]], profile=True)
    print(report)
    print(f"accuracy: {accuracy(model, test):.2%} before, {accuracy(student, test):.2%} pruned", end="")
    loss = deploykit.distill(student, model, deploykit.Response(temperature=4, alpha=0.7) + deploykit.Relation())
    history = loss.fit(batches(train_set), epochs=epochs, lr=3e-3)
    print(f", {accuracy(student, test):.2%} after {history.steps} steps of distillation\n")


def main() -> None:
    """Train, prune, distil, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # images of 8 x 8: a second thread costs more than it brings
    train_set, choice, test = load()
    model = train(make_model(), train_set, epochs=arguments.epochs)
    step_by_step(model, train_set, test, ratio=arguments.ratio, epochs=arguments.epochs)
    found = deploykit.compress(
        model,
        TARGET,
        train=batches(train_set),
        example_inputs=(train_set[0][:1],),
        calibration=[train_set[0][:200]],
        evaluate=partial(accuracy_of, data=choice),
        max_drop=0.02,
        ratio=arguments.ratio,
        training={"epochs": arguments.epochs, "lr": 3e-3},
        dynamic_batch=True,
        output=arguments.output / "pruned-digits",
    )
    print(found)
    with found.artifact.open() as session:
        print(f"accuracy of the artifact: {accuracy_of(session, test):.2%}", end="")
        print(f"; of the float model: {accuracy(model, test):.2%}")


if __name__ == "__main__":
    main()
