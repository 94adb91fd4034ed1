"""Layers whose weight alone is rounded: what the scheme says of them is placed, simulated and reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit.contract.formats import (
    INT4_CHANNELS,
    INT8_CHANNELS,
    INT8_ROWS,
    PALETTE4,
    UINT8_AFFINE,
    PerGroup,
    TensorScheme,
)
from deploykit.contract.scheme import WEIGHT, Inputs, OpRule, Scheme, weights_alone
from deploykit.pipeline.plan import make_request
from deploykit.plugin.registry import toolchains
from deploykit_calibration.placement import QuantizedGraph, place
from deploykit_calibration.simulate import SimulatedModel
from deploykit_calibration.weights import rounded_weight

WEIGHT_OF = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32))
KINDS = ("linear", "matmul", "conv", "embedding")


def scheme(form: TensorScheme, rule: OpRule = WEIGHT, **fields: Any) -> Scheme:
    return weights_alone("own", form, rules=dict.fromkeys(KINDS, rule), **fields)


def placed(module: nn.Module, x: Tensor, own: Scheme, **patterns: Any) -> QuantizedGraph:
    return place(capture(module.eval(), example_inputs=(x,)), None, own, **patterns)


def steps(rounded: Tensor, weight: Tensor, groups: int) -> int:
    """The number of different values in a group, at most."""
    parts = rounded.reshape(len(weight), groups, -1)
    return max(len(part.unique()) for row in parts for part in row)


@pytest.mark.parametrize(
    ("form", "groups", "most"),
    [
        (INT8_CHANNELS, 1, 20),
        (INT4_CHANNELS, 1, 15),
        (replace(INT4_CHANNELS, granularity=PerGroup(5)), 4, 5),
        (replace(INT4_CHANNELS, granularity=PerGroup(0)), 1, 15),
    ],
    ids=["int8", "int4", "int4 in groups", "int4 in one group"],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_is_within_half_a_step_of_its_values(form: TensorScheme, groups: int, most: int, axis: int) -> None:
    weight = WEIGHT_OF if axis == 0 else WEIGHT_OF.T.contiguous()
    got = rounded_weight(weight, axis, scheme(form))
    assert got.shape == weight.shape and got.is_contiguous()
    got, parts = got if axis == 0 else got.T, WEIGHT_OF.reshape(6, groups, -1)
    step = parts.abs().amax(-1, keepdim=True) / form.quant_max
    assert bool(((got.reshape(parts.shape) - parts).abs() <= step / 2 * 1.001).all())
    assert steps(got, WEIGHT_OF, groups) <= most


def test_the_furthest_element_is_exact_and_takes_the_far_end() -> None:
    form = TensorScheme("int4", quant_min=-8, quant_max=7, granularity=PerGroup(8), furthest=True)  # 20 is no multiple
    got = rounded_weight(WEIGHT_OF, 0, scheme(form))
    for row in range(6):
        for start in (0, 8, 16):
            part, own = WEIGHT_OF[row, start : start + 8], got[row, start : start + 8]
            furthest = part.abs().argmax()
            assert own[furthest] == part[furthest]
            codes = own / (part[furthest] / -8)
            assert torch.allclose(codes, codes.round(), atol=1e-4) and codes.min() >= -8.001 and codes.max() <= 7.001


def test_palettes_and_affine_tensors() -> None:
    assert len(rounded_weight(WEIGHT_OF, 0, scheme(PALETTE4)).unique()) <= 16
    got = rounded_weight(WEIGHT_OF, 0, scheme(UINT8_AFFINE))
    assert float((got - WEIGHT_OF).abs().max()) <= float(WEIGHT_OF.max() - WEIGHT_OF.min()) / 255 / 2 * 1.001


def test_float16_weights_are_rounded_in_float16() -> None:
    form = replace(INT8_CHANNELS, granularity=PerGroup(0))
    plain, half = (rounded_weight(WEIGHT_OF, 0, scheme(form, float16_weights=each)) for each in (False, True))
    scales = (WEIGHT_OF.half().float().abs().amax(1, keepdim=True) / 127).half().float()
    codes = half / scales
    assert torch.allclose(codes, codes.round(), atol=1e-4) and not torch.equal(plain, half)


class Several(nn.Module):
    """A product with a matrix, with a stack, of two activations; a convolution of each channel by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 4)
        self.stack = nn.Parameter(torch.randn(2, 4, 4))
        self.each = nn.Conv1d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.each(self.fc(x).transpose(1, 2)).transpose(1, 2)
        return (y @ self.stack) @ y.transpose(1, 2)


def test_every_layer_says_why_its_weight_is_not_as_asked() -> None:
    forms = (replace(INT4_CHANNELS, granularity=PerGroup(8)), INT8_CHANNELS)
    rule = OpRule(Inputs.WEIGHT, weight=forms, matrices=True)
    own = weights_alone(
        "own", forms[0], rules={"linear": rule, "matmul": rule, "conv": replace(WEIGHT, depthwise=False)}
    )
    found = {layer.kind: layer for layer in placed(Several(), torch.randn(2, 5, 12), own).layers}
    products = [layer for layer in placed(Several(), torch.randn(2, 5, 12), own).layers if layer.kind == "matmul"]
    assert (
        found["linear"].precision == "int8-weights"
        and "12 inputs are no multiple of a block of 8" in found["linear"].reason
    )
    assert {layer.reason for layer in products} == {
        "its weights are a stack of matrices",
        "a product of two activations has no weights",
    }
    assert found["conv"].precision == "float" and "depthwise" in found["conv"].reason


def test_small_weights_and_patterns_stay_float() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 40)), torch.randn(1, 4)
    small = placed(module, x, scheme(INT8_CHANNELS, min_weights=17)).layers
    assert [layer.precision for layer in small] == ["float", "int8-weights"] and "fewer than 17" in small[0].reason
    kept = placed(module, x, scheme(INT8_CHANNELS), exclude=["1"]).layers
    assert [(layer.precision, layer.by_request) for layer in kept] == [("int8-weights", False), ("float", True)]


def test_the_simulation_rounds_weights_and_what_the_kernel_rounds() -> None:
    module, x = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 12)
    captured = capture(module.eval(), example_inputs=(x,))
    weights, inputs = scheme(INT8_CHANNELS), scheme(INT8_CHANNELS, OpRule(Inputs.RUN_TIME, rounded=INT8_ROWS))
    feeds = {captured.inputs[0].name: x.numpy()}
    by_scheme = []
    for own in (weights, inputs):
        quantized = place(captured, None, own)
        simulated = SimulatedModel(captured, quantized)
        assert simulated.rounds and simulated.compare_layers([feeds])
        by_scheme.append(next(iter(simulated.run(feeds).values())))
    linears = [module[0], module[2]]
    with torch.no_grad():
        for linear in linears:
            linear.weight.copy_(rounded_weight(linear.weight, 0, weights))
        np.testing.assert_allclose(by_scheme[0], module(x).numpy(), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(*by_scheme)
    assert [layer.precision for layer in place(captured, None, inputs).layers if layer.macs] == ["int8", "int8"]


@pytest.mark.parametrize("name", sorted(toolchains()))
def test_every_precision_of_layers_is_placed_by_its_target(name: str) -> None:
    """Nothing goes around placement: what is not a float type of the whole model has a scheme with rules."""
    if name == "tvm":
        pytest.importorskip("tvm.script")  # what its kernels multiply says the scheme
    captured = capture(nn.Sequential(nn.Linear(32, 32)).eval(), example_inputs=(torch.randn(1, 32),))
    target = toolchains()[name]
    for device in target.capabilities().devices.values():
        for precision in set(target.capabilities().precisions) & set(device.precisions):
            request = make_request(f"{device.name}:{name}", precision.value)
            found = target.scheme(request, captured)
            assert found.quantizes is not precision.row.is_whole, (device.name, precision)
            assert found.is_static is precision.is_static, (device.name, precision)
