"""Models of the zoo, captured and calibrated once for all tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import CapturedModel, capture
from deploykit.testing.models import ZOO
from deploykit_calibration.observe import calibrate
from deploykit_calibration.table import CalibrationTable

sys.path.insert(0, str(Path(__file__).parent))  # `schemes`, which several tests share


@dataclass(frozen=True, eq=False)
class Case:
    """A captured model with its calibration and the samples that it was calibrated on."""

    captured: CapturedModel
    table: CalibrationTable
    feeds: tuple[dict[str, Tensor], ...]


def make_case(model: nn.Module, examples: tuple[Tensor, ...] | dict[str, Tensor], samples: int = 8) -> Case:
    """Capture and calibrate on seeded random inputs that look like the examples."""
    captured = capture(model, example_inputs=examples)
    generator = torch.Generator().manual_seed(0)

    def like(example: Tensor) -> Tensor:
        if example.is_floating_point():
            return torch.randn(example.shape, generator=generator)
        low = min(int(example.min()), 0)
        return torch.randint(low, int(example.max()) + 1, example.shape, generator=generator, dtype=example.dtype)

    names = [spec.name for spec in captured.inputs]
    feeds = tuple(
        {name: like(example) for name, example in zip(names, captured.example_inputs, strict=True)}
        for _ in range(samples)
    )
    return Case(captured, calibrate(captured, list(feeds), progress=False), feeds)


@cache
def _zoo_case(name: str) -> Case:
    return make_case(*ZOO[name]())


@pytest.fixture(scope="session")
def zoo() -> Callable[[str], Case]:
    """The calibrated case of a zoo model, by its name."""
    return _zoo_case


@pytest.fixture(scope="session")
def case_of() -> Callable[..., Case]:
    """Make the calibrated case of any model and example inputs."""
    return make_case
