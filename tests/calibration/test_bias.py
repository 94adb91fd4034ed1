"""Corrected biases against a brute-force reference, and what they buy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit_calibration.bias import corrected
from deploykit_calibration.placement import QuantizedGraph, place
from deploykit_calibration.scheme import LITERT, ONNX_X86, SCHEMES, TENSORRT, QuantScheme
from deploykit_calibration.simulate import SimulatedModel


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_shift_of_a_convolution_over_constant_channels_is_taken_out(groups: int) -> None:
    """Over an input that is constant in every channel, mean and input are one: the shift is the whole error."""
    error, bias, means = random(12, 6 // groups, 3, 3, seed=0), random(12, seed=1), random(6, seed=2).double()
    image = means.float()[None, :, None, None].expand(1, 6, 5, 5)
    shifted = F.conv2d(image, error, bias, groups=groups)[0, :, 0, 0]
    # float32 sums of 54 products
    np.testing.assert_allclose(corrected(bias, error, means.numpy()), 2 * bias - shifted, atol=1e-4)


def test_the_shift_of_a_linear_layer_by_hand() -> None:
    error = torch.tensor([[0.5, -1.0], [0.25, 0.0]])
    result = corrected(torch.tensor([1.0, 2.0]), error, np.array([2.0, 3.0]))
    assert result.tolist() == [1.0 - (0.5 * 2 - 3.0), 2.0 - 0.5]


class Mean(nn.Module):
    """The mean over positions, behind every kind of layer whose bias is corrected."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4)
        self.head = nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.grouped(x).relu()
        return self.head(x.mean((2, 3))).relu()


def mean_error(case: Any, quantized: QuantizedGraph) -> float:
    """Root mean square of the outputs' mean shift."""
    simulated = SimulatedModel(case.captured, quantized)
    (name,) = (spec.name for spec in case.captured.outputs)
    shifts = []
    for feeds in case.feeds:
        got = simulated.run({key: value.numpy() for key, value in feeds.items()})[name]
        shifts.append(got - case.captured.run(feeds)[name].numpy())
    return float(np.sqrt(np.square(np.mean(shifts, axis=0)).mean()))


@pytest.mark.parametrize("scheme", [TENSORRT, ONNX_X86, LITERT], ids=lambda scheme: scheme.name)
def test_outputs_shift_less_with_corrected_biases(case_of: Callable[..., Any], scheme: QuantScheme) -> None:
    torch.manual_seed(0)
    case = case_of(Mean().eval(), (torch.zeros(1, 3, 16, 16),), samples=16)
    shift, uncorrected = (
        mean_error(case, place(case.captured, case.table, replace(scheme, bias_correction=on))) for on in (True, False)
    )
    assert shift < 0.7 * uncorrected


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_table_without_means_leaves_biases_as_they_are(zoo: Any, scheme: QuantScheme) -> None:
    case = zoo("residual_cnn")
    old = place(case.captured, replace(case.table, layer_inputs={}), scheme)
    off = place(case.captured, case.table, replace(scheme, bias_correction=False))
    on = place(case.captured, case.table, scheme)
    buffers = [dict(placed.graph_module.named_buffers()) for placed in (old, off, on)]
    assert buffers[0].keys() == buffers[1].keys()
    assert all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())
    assert any(name not in buffers[0] or not torch.equal(value, buffers[0][name]) for name, value in buffers[2].items())


def test_layers_that_share_a_bias_are_corrected_apart(case_of: Callable[..., Any]) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(20, 20), nn.Linear(20, 20)
            self.two.bias = self.one.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu())

    case = case_of(Shared(), (torch.zeros(1, 20),))
    graph = place(case.captured, case.table, TENSORRT).graph_module
    biases = [node.args[2] for node in graph.graph.nodes if str(node.target) == "aten.linear.default"]
    first, second = (getattr(graph, str(bias.target)) for bias in biases)
    assert not torch.equal(first, second)
