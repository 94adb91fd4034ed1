"""One tiny network on real digits, and its calibration data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from deploykit.testing.models import randomise_batch_norms

Digits = tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Images (n, 1, 8, 8) from 0 to 1, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


@pytest.fixture
def make_net() -> Callable[[], nn.Module]:
    """Makes the same small network with batch norms each time it is called."""

    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU6(),
                nn.Conv2d(8, 8, 3, padding=1, groups=8),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(32, 10),
            )
            return randomise_batch_norms(net)

    return make


@pytest.fixture
def train(digits: Digits) -> Callable[..., list[float]]:
    """A loop of a few steps over the digits; gives the losses."""

    def run(net: nn.Module, steps: int = 3, lr: float = 1e-2) -> list[float]:
        optimizer, (images, labels) = torch.optim.Adam(net.parameters(), lr), digits
        losses = []
        for step in range(steps):
            part = slice(step * 32, step * 32 + 32)
            loss = nn.functional.cross_entropy(net(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run
