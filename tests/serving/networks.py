"""The networks that are served."""

from __future__ import annotations

import torch
from torch import nn

WORDS = 16


class Words(nn.Module):
    """Scores of token numbers below `WORDS`; ONNX Runtime refuses others when it runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(WORDS, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens).mean(1))


def images() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
