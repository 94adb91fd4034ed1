"""What further samples do to ranges is foreseen where values differ wildly from sample to sample, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the simulation needs PyTorch")

import torch
from torch import nn

from deploykit.capture import capture
from deploykit.contract.decibels import sqnr_db
from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision
from deploykit.contract.request import Request
from deploykit.testing.models import seeded
from deploykit_calibration.foreseen import FURTHER, foresee, further_by
from deploykit_calibration.observe import run_calibration
from deploykit_calibration.prepare import prepare
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.simulate import SimulatedModel
from deploykit_calibration.statistics import TensorStatistics
from deploykit_targets._schemes.x86 import ONNX_X86


class Between(nn.Module):
    """Two linear layers with a function between."""

    def __init__(self, function: Any, *, bias: bool = True) -> None:
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(8, 16), nn.Linear(16, 4, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.function(self.a(x)))
        return y


def inputs(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def prepared(model: nn.Module, samples: int, seed: int = 0) -> tuple[Prepared, torch.Tensor]:
    captured, data = capture(model, example_inputs=(torch.zeros(1, 8),)), inputs(samples, seed)
    run = run_calibration(captured, data, progress=False)
    device = Device("any", "any", "any", "x86-64", (Precision.INT8,))
    return prepare(Request("any", "any", device, Precision.INT8), captured, ONNX_X86, table=run.table), data


def reached(model: nn.Module, simulation: SimulatedModel, data: torch.Tensor) -> float:
    signal = noise = 0.0
    for row in data:
        (got,) = simulation.run({"x": row[None].numpy()}).values()
        with torch.no_grad():
            want = model(row[None]).double().numpy()
        signal, noise = signal + float((want**2).sum()), noise + float(((want - got) ** 2).sum())
    return sqnr_db(signal, noise)


CENTRES = inputs(16, 7)


def radial(x: torch.Tensor) -> torch.Tensor:
    """Of points near and far: values from exp(-40) to exp(-1)."""
    return torch.exp(-(x[..., :8, None] - CENTRES.T).pow(2).sum(-2))


@pytest.mark.parametrize("function", [lambda x: torch.exp(4 * x), radial], ids=["exp", "radial"])
def test_wild_values_are_foreseen_before_they_come(function: Any) -> None:
    with seeded(0):
        model = Between(function, bias=False).eval()
    claimed, foreseen, fresh = [], [], []
    for seed in range(4):
        quantized, data = prepared(model, 16, seed)
        found = foresee(quantized)
        assert found is not None and quantized.simulation is not None
        ((name, factor),) = found.worst(1)
        assert name == "exp" and factor > 1.25
        claimed.append(reached(model, quantized.simulation, data))
        foreseen.append(reached(model, found.simulation, data))
        fresh.append(reached(model, quantized.simulation, inputs(FURTHER, 99)))
    assert np.mean(claimed) > np.mean(fresh) + 4.0, "else nothing is to be foreseen"
    assert np.mean(foreseen) < np.mean(fresh) + 4.0  # what is foreseen is what comes, or less


@pytest.mark.parametrize("function", [lambda x: x**3, lambda x: x * torch.relu(x), torch.square])
@pytest.mark.parametrize("samples", [8, 16, 48])
def test_a_product_is_not_taken_for_wild(function: Any, samples: int) -> None:
    """It passes what was seen by more than normal noise does, and its range has room for that."""
    with seeded(0):
        model = Between(function, bias=False).eval()
    assert foresee(prepared(model, samples)[0]) is None


def test_a_product_in_a_range_of_what_was_seen_alone_may_be_wild() -> None:
    """`minmax` leaves no room: what comes beyond is foreseen as of any other tensor."""
    with seeded(0):
        model = Between(lambda x: x**3, bias=False).eval()
    found = [foresee(replace(prepared(model, 48, seed)[0], method="minmax")) for seed in range(4)]
    assert any(found)


@pytest.mark.parametrize("samples", [4, 12, 32])
@pytest.mark.parametrize(
    "function", [torch.relu, torch.nn.functional.gelu, torch.nn.functional.silu, lambda x: torch.softmax(4 * x, -1)]
)
def test_values_that_are_alike_are_left_alone(function: Any, samples: int) -> None:
    with seeded(0):
        model = Between(function).eval()
    assert foresee(prepared(model, samples)[0]) is None


def test_enough_samples_have_shown_what_is_to_be_expected() -> None:
    values = np.exp(2.0 * np.random.default_rng(0).normal(size=(FURTHER, 16))).astype(np.float32)
    assert further_by(TensorStatistics.of(values)) == (1.0, 1.0)
    low, high = further_by(TensorStatistics.of(values[:32]))
    assert low == 1.0 and high > 1.5
    low, high = further_by(TensorStatistics.of(-values[:32]))
    assert high == 1.0 and low > 1.5
