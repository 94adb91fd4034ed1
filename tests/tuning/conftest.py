"""One small network, captured and calibrated once for all tests of the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit import pipeline

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

SHAPE = (1, 3, 8, 8)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
    last = (nn.Conv2d(8, 16, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(*first, *last).eval()


@dataclass(frozen=True, eq=False)
class Case:
    """A captured model, its calibration, and held-out arrays with the float model's classes."""

    captured: Any
    run: Any
    arrays: list[np.ndarray]
    labels: list[int]

    def right(self, session: Any) -> list[bool]:
        """Top-1 of each held-out sample."""
        given, got = session.inputs[0].name, session.outputs[0].name
        found = [int(session.run({given: array})[got].argmax()) for array in self.arrays]
        return [one == label for one, label in zip(found, self.labels, strict=True)]


@pytest.fixture(scope="session")
def case() -> Case:
    captured = pipeline.capture(net(), example_inputs=(draw(0),))
    run = pipeline.calibrate(captured, [draw(seed) for seed in range(12)], progress=False)
    arrays = [draw(100 + seed).numpy() for seed in range(20)]
    labels = [int(captured.run({captured.inputs[0].name: torch.from_numpy(x)})["output"].argmax()) for x in arrays]
    return Case(captured, run, arrays, labels)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these algorithms be all that are registered."""
    from deploykit_calibration import algorithms

    def choose(*found: Any) -> None:
        own = {each.name: each for each in (algorithms.algorithm("bias-correction"), *found)}
        monkeypatch.setattr(algorithms, "_own", lambda: own)
        monkeypatch.setattr(algorithms, "entry_points", lambda *_: {})

    return choose
