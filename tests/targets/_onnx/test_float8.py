"""E4M3 simulated in PyTorch, compared with NumPy's own rounding (ml_dtypes)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from deploykit_targets._onnx.float8 import MAX_E4M3, fake_float8, float8_scale


@pytest.mark.parametrize("scale", [1.0, 0.0123, 7.5])
def test_simulated_rounding_is_that_of_onnx(scale: float) -> None:
    """Bit for bit: both divide in float32, saturate at 448 and round to even."""
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32) * 300
    step = np.float32(scale)
    want = np.clip(values / step, -MAX_E4M3, MAX_E4M3).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step
    np.testing.assert_array_equal(fake_float8(torch.from_numpy(values), float(step)).numpy(), want)


def test_the_range_of_a_scale_stays() -> None:
    scale = np.array([0.5, 2.0], np.float32)
    np.testing.assert_allclose(float8_scale(scale) * MAX_E4M3, scale * 127, rtol=1e-6)  # two float32 roundings
    assert float8_scale(scale).dtype == np.float32
