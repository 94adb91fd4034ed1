"""Scales of weights and int32 biases, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploykit.contract.errors import CalibrationError, ConversionError
from deploykit.contract.formats import INT8_SYMMETRIC, PALETTE4, PerAxis, PerGroup, TensorScheme
from deploykit_calibration.bias import INT32_MAX, quantize_bias, scale_floor
from deploykit_calibration.weights import weight_quant
from deploykit_targets._schemes.x86 import ONNX_X86, ONNX_X86_NO_VNNI

WEIGHT = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_one_symmetric_scale_for_each_output_channel() -> None:
    quant = weight_quant(WEIGHT, 0, ONNX_X86)
    expected = np.abs(WEIGHT.numpy()).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(quant.scales.numpy(), expected, rtol=1e-6)  # one rounding to float32
    values = quant.quantize(WEIGHT)
    assert values.dtype == torch.int8
    assert values.abs().amax((1, 2, 3)).tolist() == [127] * 5
    restored = values.float() * quant.scales.reshape(-1, 1, 1, 1)
    # Half a step, and float32 rounding of the division at the tie.
    assert bool(((restored - WEIGHT).abs() <= quant.scales.reshape(-1, 1, 1, 1) * 0.500001).all())


def test_the_channel_axis_of_a_transposed_convolution() -> None:
    quant = weight_quant(WEIGHT, 1, ONNX_X86)
    np.testing.assert_allclose(quant.scales.numpy(), np.abs(WEIGHT.numpy()).max(axis=(0, 2, 3)) / 127, rtol=1e-6)
    assert quant.axis == 1


def test_per_tensor_where_the_scheme_says_so() -> None:
    quant = weight_quant(WEIGHT, 0, replace(ONNX_X86, weight=INT8_SYMMETRIC))
    assert quant.axis is None
    np.testing.assert_allclose(quant.scales.numpy(), [WEIGHT.abs().max().item() / 127], rtol=1e-6)
    assert quant.quantize(WEIGHT).abs().max() == 127


def test_seven_bits_cannot_saturate_sixteen() -> None:
    """vpmaddubsw adds two products of uint8 and int8 in int16."""
    quant = weight_quant(WEIGHT, 0, ONNX_X86_NO_VNNI)
    values = quant.quantize(WEIGHT).int()
    assert int(values.min()) >= -64
    assert int(values.max()) <= 63
    assert 2 * 255 * int(values.abs().max()) <= 2**15 - 1


def test_a_channel_of_zeros_keeps_its_bias_and_every_scale_is_positive() -> None:
    weight = WEIGHT.clone()
    weight[1] = 0.0
    weight[2] *= 1e-12
    bias = torch.tensor([0.0, 3.0, -3.0, 1.0, 0.0])
    quant = weight_quant(weight, 0, ONNX_X86, floor=scale_floor(bias, 0.01))
    assert bool((quant.scales > 0).all())
    values, scales = quantize_bias(bias, 0.01, quant.scales)
    assert int(values.abs().max()) < INT32_MAX
    np.testing.assert_allclose((values.double() * scales.double()).numpy(), bias.numpy(), rtol=1e-6, atol=1e-4)


@given(st.floats(1e-6, 10), st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), st.floats(1e-9, 1.0))
def test_an_int32_bias_is_off_by_at_most_half_a_step(input_scale: float, biases: list[float], spread: float) -> None:
    bias = torch.tensor(biases)
    scales = torch.maximum(torch.full(bias.shape, spread), scale_floor(bias, input_scale))
    values, bias_scales = quantize_bias(bias, input_scale, scales)
    error = (values.double() * bias_scales.double() - bias.double()).abs()
    assert bool((error <= bias_scales.double() * 0.5000001).all())


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    weight = WEIGHT.clone()
    weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"weight features\.0"):
        weight_quant(weight, 0, ONNX_X86, name="weight features.0")


@pytest.mark.parametrize(
    "form",
    [
        TensorScheme("int4", quant_min=-8, quant_max=7, granularity=PerAxis()),
        TensorScheme("int8", quant_min=-127, quant_max=127, granularity=PerGroup(32)),
        TensorScheme("uint8", symmetric=False, quant_min=0, quant_max=255),
        PALETTE4,
    ],
    ids=lambda form: form.dtype,
)
def test_a_form_that_is_not_placed_is_refused(form: TensorScheme) -> None:
    with pytest.raises(ConversionError, match="is not placed") as caught:
        weight_quant(torch.ones(4, 64), 0, replace(ONNX_X86, weight=form))
    assert form.dtype in str(caught.value)
