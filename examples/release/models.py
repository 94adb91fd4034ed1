"""What `release.toml` beside it is of: two small networks with data and a metric, all seeded, nothing downloaded."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import deploykit

CLASSES, HELD_OUT = 4, 64


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of 16 x 16 with stripes in one of four directions, float32 (count, 1, 16, 16), and their classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    rows, columns = np.mgrid[0:16, 0:16]
    waves = np.stack([rows, columns, rows + columns, rows - columns]) * 0.9
    phase = random.uniform(0, 6.28, (count, 1, 1))
    images = np.sin(waves[labels] + phase) + 0.5 * random.standard_normal((count, 16, 16))
    return torch.from_numpy(images[:, None]).float(), torch.from_numpy(labels)


def _trained(width: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A CNN that has learnt the stripes for a few seconds, and example inputs."""
    torch.manual_seed(0)
    first = (nn.Conv2d(1, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(4))
    last = (nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*first, *last, nn.Linear(width, CLASSES))
    images, labels = stripes(512, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(4):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval(), (images[:1],)


class Net(nn.Module):
    """A network that knows the data that it is to be calibrated on; `release.toml` then names none."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> Tensor:
        """Scores, float32 (1, 4)."""
        scores: Tensor = self.body(image)
        return scores

    def calibration_dataloader(self) -> list[Tensor]:
        """Images that nothing is evaluated on."""
        return list(stripes(32, seed=2)[0].split(1))


def small() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """8 channels."""
    body, inputs = _trained(8)
    return Net(body).eval(), inputs


def wide() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """16 channels."""
    body, inputs = _trained(16)
    return Net(body).eval(), inputs


@cache
def _held_out() -> tuple[np.ndarray, np.ndarray]:
    images, labels = stripes(HELD_OUT, seed=3)
    return images.numpy(), labels.numpy()


def top1(session: deploykit.Session) -> list[float]:
    """Whether each held-out image is classified rightly: a score per sample, so that the drop has an interval."""
    images, labels = _held_out()
    name, scores = session.inputs[0].name, session.outputs[0].name
    found = [int(session.run({name: image[None]})[scores].argmax()) for image in images]
    return [float(one == label) for one, label in zip(found, labels, strict=True)]
