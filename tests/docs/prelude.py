"""What a reader's own program has before the first block of a page: a trained model's stand-in, data, a metric.

Small and seeded. Nothing here is a part of deploykit; a page that needs something else makes it in a block of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deploykit

__all__ = [
    "Any", "Callable", "DataLoader", "Path", "Tensor", "TensorDataset", "accuracy", "array", "batches", "deploykit",
    "images", "labels", "loader", "make", "model", "nn", "np", "shard_1", "shard_2", "test_images", "test_labels",
    "torch", "x",
]  # fmt: skip

torch.manual_seed(0)
torch.set_num_threads(1)

ABSENT = 77
"""Exit code of a page whose next block needs what is not here."""


def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A CNN for images (n, 3, 32, 32), and an example input."""
    layers = [
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(32, 10),
    ]
    return nn.Sequential(*layers).eval(), (torch.randn(1, 3, 32, 32),)


model, (x,) = make()
images = torch.randn(48, 3, 32, 32)
with torch.no_grad():
    labels = model(images).argmax(1)
    test_images = torch.randn(24, 3, 32, 32)
    test_labels = model(test_images).argmax(1)
loader = DataLoader(TensorDataset(images, labels), batch_size=8)
shard_1, shard_2 = [images[:24]], [images[24:]]
batches = [images[at : at + 8] for at in range(0, 48, 8)]
array = x.numpy()
np.savez("data.npz", input=images.numpy())
np.savez("x.npz", input=array)


def accuracy(session: deploykit.Session) -> float:
    """Share of the test images whose class is right."""
    name, output = session.inputs[0].name, session.outputs[0].name
    rows = [session.run({name: image[None]})[output] for image in test_images.numpy()]
    return float((np.concatenate(rows).argmax(1) == test_labels.numpy()).mean())


def write(name: str, code: str) -> None:
    """A file that a block is."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


def artifact(folder: str) -> None:
    """An artifact of the model, which a page takes for given."""
    deploykit.export(model, "x86-cpu", "fp32", example_inputs=(x,), profile=False, progress=False, output=folder)


def needs(what: str, where: str) -> None:
    """Stop, with a reason, where a module or (`!name`) a program is not here."""
    for one in what.split(","):
        found = shutil.which(one[1:]) if one.startswith("!") else importlib.util.find_spec(one)
        if found is None:
            print(f"{where}: needs {one.removeprefix('!')}, which is not here")
            sys.stdout.flush()
            os._exit(ABSENT)


def shell(words: list[str], wanted: int, where: str) -> None:
    """Run a command of deploykit or Python, as the page prints it."""
    if words[0] == "deploykit":
        from deploykit.cli import main

        code = main(words[1:])
    else:
        code = subprocess.run(
            [sys.executable if words[0] == "python" else words[0], *words[1:]], check=False
        ).returncode
    if code != wanted:
        print(f"{where}: {' '.join(words)} ended with {code}, not {wanted}")
        sys.exit(1)
