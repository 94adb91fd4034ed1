"""Which quantization scheme an x86 device gets from ONNX Runtime."""

from __future__ import annotations

from deploykit.devices import Device
from deploykit_calibration.scheme import ONNX_X86, ONNX_X86_NO_VNNI, QuantScheme


def scheme_of(device: Device) -> QuantScheme:
    """The scheme for `device`; without VNNI, weights of 7 bits keep 16-bit sums from saturating."""
    return ONNX_X86 if "vnni" in device.features else ONNX_X86_NO_VNNI
