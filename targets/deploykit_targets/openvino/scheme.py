"""Which quantization scheme an x86 device gets from OpenVINO."""

from __future__ import annotations

from dataclasses import replace

from deploykit.devices import Device
from deploykit_calibration.scheme import OPENVINO, QuantScheme


def scheme_of(device: Device) -> QuantScheme:
    """The scheme for `device`; without VNNI, weights of 7 bits keep 16-bit sums from saturating."""
    return OPENVINO if "vnni" in device.features else replace(OPENVINO, name="openvino-no-vnni", reduce_range=True)
