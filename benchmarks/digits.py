"""Networks trained in seconds on scikit-learn's bundled digits: real accuracy to lose, with nothing downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from models import InvertedResidual, ResidualBlock, conv_norm
from torch import Tensor, nn

_SIZE = 32
_EPOCHS = 10


@dataclass(frozen=True)
class Trained:
    """A trained network and its data; images are float32 (n, 1, 32, 32), labels int64 (n,)."""

    model: nn.Module
    train_images: Tensor
    test_images: Tensor
    test_labels: np.ndarray[Any, Any]


def mobilenet() -> nn.Module:
    """MobileNetV2's blocks in small: depthwise convolutions, relu6, linear bottlenecks."""
    blocks = ((16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 40, 2, 4), (40, 40, 1, 4), (40, 64, 1, 4))
    body = [InvertedResidual(c_in, c_out, stride, expand) for c_in, c_out, stride, expand in blocks]
    head = [*conv_norm(64, 160, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 10)]
    return nn.Sequential(*conv_norm(1, 16, 3, 2), nn.ReLU6(), *body, *head)


def resnet() -> nn.Module:
    """ResNet's basic blocks in small."""
    blocks = [ResidualBlock(c_in, c_out, stride, bottleneck=False) for c_in, c_out, stride in _RESNET]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*conv_norm(1, 16, 3), nn.ReLU(), *blocks, *head)


_RESNET = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))


def trained(kind: str, *, seed: int = 0) -> Trained:
    """Train `mobilenet` or `resnet` on 1,200 digits; the other 597 are held out. Split, weights and order by `seed`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    images = nn.functional.interpolate(small, size=(_SIZE, _SIZE), mode="bilinear")
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        train, test = order[:1200], order[1200:]
        model = {"mobilenet": mobilenet, "resnet": resnet}[kind]()
        _fit(model, images[train], labels[train])
    return Trained(model.eval().requires_grad_(False), images[train], images[test], labels[test].numpy())


def _fit(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = _EPOCHS * (len(images) // 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        picked = torch.randint(len(images), (50,))
        noisy = images[picked] + 0.3 * torch.randn_like(images[picked])
        loss = nn.functional.cross_entropy(model(noisy), labels[picked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
