"""Real artifacts, exported once, and real servers in processes of their own, spoken to over loopback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import deploykit

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

sys.path.insert(0, str(Path(__file__).parent))  # `speaking`, which several tests share
from speaking import Server, Start, started

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


@dataclass(frozen=True)
class Artifacts:
    words: Path
    images: Path
    fixed: Path
    floats: Path


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> Artifacts:
    folder = tmp_path_factory.mktemp("served")
    tokens, image = torch.arange(4)[None], torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    shared = {"profile": False, "progress": False}
    deploykit.export(Words().eval(), "x86-cpu", "fp32", example_inputs=(tokens,), dynamic_batch=True,
                     output=folder / "words", **shared)  # fmt: skip
    data = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    int8 = {"calibration": data, "example_inputs": (image,), "min_placement": 0, **shared}
    deploykit.export(images(), "x86-cpu", "int8", dynamic_batch=True, output=folder / "images", **int8)
    deploykit.export(images(), "x86-cpu", "int8", output=folder / "fixed", **int8)
    deploykit.export(images(), "x86-cpu", "fp32", example_inputs=(image,), dynamic_batch=True,
                     output=folder / "floats", **shared)  # fmt: skip
    return Artifacts(*(folder / name for name in ("words", "images", "fixed", "floats")))


@pytest.fixture
def serve() -> Start:
    return started


@pytest.fixture(scope="session")
def shared(artifacts) -> Iterator[Server]:
    """One server for all tests that leave it as it is."""
    more = (f"words:9={artifacts.words}", f"words:10={artifacts.words}", artifacts.images, artifacts.fixed)
    with started(*more, "--max-body", "200k", "--max-queue", "64") as server:
        yield server
