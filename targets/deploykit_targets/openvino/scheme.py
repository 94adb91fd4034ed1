"""Which quantization scheme an x86 device gets from OpenVINO."""

from __future__ import annotations

from dataclasses import replace

from deploykit.contract.devices import Device
from deploykit_calibration.scheme import OPENVINO, QuantScheme
from deploykit_targets._onnx.vnni import has_wide_weights


def scheme_of(device: Device) -> QuantScheme:
    """The scheme for `device`; weights of 7 bits cannot saturate 16-bit sums on any CPU."""
    return OPENVINO if has_wide_weights(device) else replace(OPENVINO, name="openvino-no-vnni", reduce_range=True)
