"""Corrected biases against a brute-force reference, and what they buy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from schemes import SCHEMES
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.capture import capture
from deploykit.contract.errors import CalibrationError
from deploykit.contract.scheme import Scheme
from deploykit_calibration.bias import corrected, tap_coverage
from deploykit_calibration.channel_sums import ChannelSums
from deploykit_calibration.op_kinds import kind_of
from deploykit_calibration.placement import QuantizedGraph, place
from deploykit_calibration.simulate import SimulatedModel
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86
from deploykit_targets.litert.scheme import LITERT


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_shift_of_a_convolution_over_constant_channels_is_taken_out(groups: int) -> None:
    """Over an input that is constant in every channel, mean and input are one: the shift is the whole error."""
    error, bias, means = random(12, 6 // groups, 3, 3, seed=0), random(12, seed=1), random(6, seed=2).double()
    image = means.float()[None, :, None, None].expand(1, 6, 5, 5)
    shifted = F.conv2d(image, error, bias, groups=groups)[0, :, 0, 0]
    # float32 sums of 54 products
    np.testing.assert_allclose(corrected(bias, error, means.numpy(), torch.ones(3, 3)), 2 * bias - shifted, atol=1e-4)


def test_the_shift_of_a_linear_layer_by_hand() -> None:
    error = torch.tensor([[0.5, -1.0], [0.25, 0.0]])
    result = corrected(torch.tensor([1.0, 2.0]), error, np.array([2.0, 3.0]), torch.ones(()))
    assert result.tolist() == [1.0 - (0.5 * 2 - 3.0), 2.0 - 0.5]


LAYERS = {
    "same": (nn.Conv2d(6, 4, 3, padding=1), (6, 5, 5)),
    "mostly padding": (nn.Conv2d(6, 4, 5, padding=2), (6, 1, 1)),
    "dilated": (nn.Conv2d(6, 4, 3, dilation=4, padding=4), (6, 5, 7)),
    "strided": (nn.Conv2d(6, 4, (3, 5), stride=(2, 3), padding=(1, 2)), (6, 9, 8)),
    "depthwise": (nn.Conv2d(6, 6, 7, padding=3, groups=6), (6, 3, 3)),
    "even, padded unevenly": (nn.Conv1d(6, 4, 4, padding="same"), (6, 9)),
    "valid": (nn.Conv1d(6, 4, 3, padding="valid"), (6, 9)),
    "volume": (nn.Conv3d(6, 4, 3, padding=1, groups=2), (6, 2, 3, 4)),
    "linear": (nn.Linear(6, 4), (6,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_padding_counts_as_often_as_it_is_met(name: str) -> None:
    """Over constant channels the mean of the shift over all positions is taken out exactly, whatever pads."""
    layer, shape = LAYERS[name]
    captured = capture(layer, example_inputs=(torch.zeros(1, *shape),))
    (node,) = (n for n in captured.graph_module.graph.nodes if kind_of(n) in ("conv", "linear"))
    means = random(6, seed=2)
    constant = means.reshape(6, *[1] * (len(shape) - 1)).expand(shape)[None]
    with torch.no_grad():
        shift = layer(constant) - layer(torch.zeros_like(constant))
        layer_bias = torch.zeros(shift.shape[1])
        result = corrected(layer_bias, layer.weight, means.double().numpy(), tap_coverage(node))
    expected = -shift.flatten(2).mean(2)[0] if shift.ndim > 2 else -shift[0]
    np.testing.assert_allclose(result, expected, atol=1e-5)  # float32 sums of up to 150 products


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
def test_outputs_shift_less_with_corrected_biases(case_of: Callable[..., Any], scheme: Scheme) -> None:
    torch.manual_seed(0)
    case = case_of(Mean().eval(), (torch.zeros(1, 3, 16, 16),), samples=16)
    shift, uncorrected = (
        mean_error(case, place(case.captured, case.table, replace(scheme, bias_correction=on))) for on in (True, False)
    )
    assert shift < 0.7 * uncorrected


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_table_without_means_leaves_biases_as_they_are(zoo: Any, scheme: Scheme) -> None:
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


def test_a_parameter_of_the_same_name_keeps_its_value(case_of: Callable[..., Any]) -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(20, 20)
            self.linear_bias_corrected = nn.Parameter(torch.full((20,), 3.0))
            self.linear_weight_q = nn.Parameter(torch.full((20,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.linear_bias_corrected + self.linear_weight_q

    case = case_of(Clash(), (torch.zeros(1, 20),))
    graph = place(case.captured, case.table, TENSORRT).graph_module
    assert torch.equal(graph.linear_bias_corrected, torch.full((20,), 3.0))
    assert torch.equal(graph.linear_weight_q, torch.full((20,), 2.0))
    assert mean_error(case, place(case.captured, case.table, TENSORRT)) < 0.05  # of outputs of about 3


def test_a_table_whose_sums_do_not_fit_the_layer_is_refused(zoo: Any) -> None:
    case = zoo("residual_cnn")
    sums = case.table.layer_inputs
    swapped = {**sums, "conv2d": ChannelSums.of(np.zeros(7), 1)}
    with pytest.raises(CalibrationError, match="7 channels of the input of conv2d, which has 3"):
        place(case.captured, replace(case.table, layer_inputs=swapped), TENSORRT)
