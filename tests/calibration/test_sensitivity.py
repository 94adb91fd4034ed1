"""Sensitivity: the roundings that are tapped are those that a scheme places, and what is predicted is what comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from schemes import SCHEMES
from torch import Tensor, nn

from deploykit.contract.decibels import sqnr_db
from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision
from deploykit.contract.request import Request
from deploykit.contract.scheme import Scheme
from deploykit.judge.parts import Part
from deploykit_calibration.prepare import prepare
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.sensitivity import sensitivity
from deploykit_calibration.sensitivity.ends import End
from deploykit_calibration.sensitivity.planning import Planning
from deploykit_calibration.sensitivity.taps import Taps
from deploykit_targets._schemes.gpu import TENSORRT_FP8
from deploykit_targets._schemes.x86 import ONNX_X86

EVERY = {**SCHEMES, TENSORRT_FP8.name: TENSORRT_FP8}
NETS = ("residual_cnn", "mobilenet_like", "concat_cnn", "transformer_encoder")


def prepared_of(case: Any, scheme: Scheme = ONNX_X86, **changes: Any) -> Prepared:
    precision = Precision.FP8 if scheme is TENSORRT_FP8 else Precision.INT8
    device = Device("any", "any", "any", "x86-64", (precision,))
    request = Request("any", "any", device, precision, **changes)
    return prepare(request, case.captured, scheme, table=case.table, samples=case.feeds)


def measured_db(prepared: Prepared, case: Any, ends: tuple[End, ...]) -> float:
    """SQNR of the simulated graph, of the worst output or part of one."""
    powers = {end.name: [0.0, 0.0] for end in ends}
    names = [spec.name for spec in prepared.captured.outputs]
    for feeds in case.feeds:
        want = prepared.captured.run(feeds)
        got = prepared.simulation.run({name: tensor.numpy() for name, tensor in feeds.items()})  # type: ignore[union-attr]
        for end in ends:
            own, reference = powers[end.name], want[names[end.index]].double().numpy()
            inside = np.ones(reference.shape, bool) if end.part is None else slices(end.part, reference.shape)
            own[0] += float(np.square(reference[inside]).sum())
            own[1] += float(np.square(reference - got[names[end.index]])[inside].sum())
    return min(sqnr_db(*each) for each in powers.values())


def slices(part: Part, shape: tuple[int, ...]) -> np.ndarray:
    """Which elements belong to a part."""
    positions = np.indices(shape)[part.axis] % (part.period or shape[part.axis])
    return (positions >= part.start) & (positions < part.stop)


@pytest.mark.parametrize("scheme", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("name", NETS)
def test_what_is_tapped_is_what_the_planner_rounds(zoo: Any, name: str, scheme: Scheme) -> None:
    prepared = prepared_of(zoo(name), scheme)
    planned = Planning(prepared).plan()
    taps = Taps(prepared.captured.graph_module, prepared.simulation.graph_module)  # type: ignore[union-attr]
    assert planned.pairs
    assert taps.reads == {(tensor, reader) for tensor, readers in planned.reads.items() for reader in readers}
    assert taps.stored == set(planned.stored)


class Residual(nn.Module):
    """Two residual blocks and a head, all of the picture's size: thousands of values are judged, and luck is small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for first, second in (self.blocks[:2], self.blocks[2:]):
            x = torch.relu(x + second(torch.relu(first(x))))
        return self.head(nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("scheme", EVERY.values(), ids=EVERY)
def test_the_gain_is_within_two_decibels_of_the_real_one(case_of: Any, scheme: Scheme) -> None:
    case = case_of(Residual(), (torch.zeros(1, 3, 24, 24),))
    prepared = prepared_of(case, scheme)
    found = sensitivity(prepared)
    assert found.sqnr_db == pytest.approx(measured_db(prepared, case, found.ends), abs=0.01)
    for count in (1, 2, 4):
        candidate = found.keep(count)
        kept = candidate.applied(prepared)
        real = measured_db(kept, case, found.ends) - found.sqnr_db
        assert candidate.gain_db == pytest.approx(real, abs=2.0), "the figure that the issue asks for"
        assert {layer.name for layer in kept.layers if layer.precision == "float"} >= set(candidate.kept)


class Planted(nn.Module):
    """Three like convolutions; in the middle, weights of a channel that is always zero spoil the scale of others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.noisy, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        with torch.no_grad():
            self.noisy.weight[:, 0] = 12.0
            self.first.weight[0], self.first.bias[0] = 0.0, -1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.noisy(torch.relu(self.first(x)))))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)  # not float8, whose errors know no scale
def test_a_planted_noisy_layer_is_found_first(case_of: Any, scheme: Scheme) -> None:
    case = case_of(Planted(), (torch.zeros(1, 8, 12, 12),))
    found = sensitivity(prepared_of(case, replace(scheme, float_outputs=False)))
    assert found.layers[0].module_path == "noisy"
    assert found.keep(1).kept == (found.layers[0].name,)
    assert found.layers[0].gain_db > 3.0
    assert "noisy" in str(found).splitlines()[2]
