"""Values are the simulation's, bit for bit; gradients are a clamp's."""

from __future__ import annotations

import torch

from deploykit_calibration import simulate
from deploykit_calibration.weights import WeightQuant
from deploykit_training import straight_through


def test_values_equal_the_simulations() -> None:
    torch.manual_seed(0)
    for scale, zero_point in ((0.1, -128), (1 / 3, 17), (7e-5, 0), (2.5, 127)):
        exact = float(torch.tensor(scale))
        x = torch.randn(4096) * exact * 150
        x[:256] = (torch.arange(256) - 127.5) * exact  # ties, where another order of operations shows
        limits = (exact, -128 - zero_point, 127 - zero_point)
        assert torch.equal(straight_through.fake_quantize(x, *limits), simulate.fake_quantize(x.clone(), *limits))


def test_gradient_is_one_inside_and_zero_outside() -> None:
    x = torch.tensor([-200.0, -3.2, 0.4, 100.0, 200.0], requires_grad=True)
    straight_through.fake_quantize(x, 1.0, -128, 127).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_weights_equal_what_is_placed_and_pass_gradients() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, requires_grad=True)
    for axis, scales in ((0, weight.detach().abs().amax(1) / 127), (None, weight.detach().abs().max()[None] / 127)):
        quant = WeightQuant(scales, torch.zeros(len(scales), dtype=torch.int64), axis, -127, 127, torch.int8)
        got = straight_through.quantize_weight(weight, quant)
        assert torch.equal(got, quant.rounded(weight))
        (gradient,) = torch.autograd.grad(got.sum(), weight)
        assert bool((gradient == 1).all())


def test_the_value_is_exactly_the_rounded_one() -> None:
    x = torch.tensor([1e8, 1e-8], requires_grad=True)
    rounded = torch.tensor([1.0, 1.0])
    got = straight_through.through(x, rounded)
    assert torch.equal(got, rounded)
    got.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0]


def test_ties_turn_away_from_where_the_integers_of_the_file_are_zero() -> None:
    x = torch.tensor([-0.5, 0.5, 1.5, 2.5, 3.5, 3.4], requires_grad=True)
    got = straight_through.away_through(x, -2)  # the file's integers are two less: -2.5, -1.5, -0.5, 0.5, 1.5
    assert got.tolist() == [-1.0, 0.0, 1.0, 3.0, 4.0, 3.0]
    got.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0] * 6


def test_integers_in_other_units_have_the_gradient_of_the_units() -> None:
    x = torch.tensor([-9.0, 0.3, 0.7, 9.0], requires_grad=True)
    got = straight_through.requantize_through(x, 0.5, -4, 4, 0.25)
    assert torch.equal(got, simulate.requantize(x.detach(), 0.5, -4, 4, 0.25))
    got.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.5, 0.5, 0.0]


def test_weights_rounded_in_float_are_the_integers_of_the_file_also_at_ties() -> None:
    torch.manual_seed(0)
    for axis, shape in ((0, (16, 8, 3, 3)), (1, (16, 8, 3, 3)), (None, (64, 32))):
        weight = torch.randn(shape)
        count = 1 if axis is None else shape[axis]
        scales = torch.rand(count) / 50 + 1e-3
        if axis is None:
            weight[0] = (torch.arange(32) - 15.5) * scales  # ties
        quant = WeightQuant(scales, torch.zeros(count, dtype=torch.int64), axis, -127, 127, torch.int8)
        assert torch.equal(quant.rounded_in_float(weight), quant.rounded(weight))
        assert torch.equal(quant.error(weight), quant.rounded(weight) - weight)
