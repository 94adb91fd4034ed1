"""Which quantization scheme and opset an AMD device gets: those of MIGraphX's ONNX parser and q/dq matcher."""

from __future__ import annotations

from deploykit.devices import Device
from deploykit_calibration.scheme import MIGRAPHX, QuantScheme

OPSET = 19
"""The newest that MIGraphX's documentation names."""


def scheme_of(device: Device) -> QuantScheme:
    """The scheme for `device`: the same for all, because the matcher is."""
    return MIGRAPHX
