"""Which quantization scheme an x86 device gets from ONNX Runtime."""

from __future__ import annotations

from deploykit.contract.devices import Device
from deploykit.contract.scheme import Scheme
from deploykit_targets._onnx.vnni import has_wide_weights
from deploykit_targets._schemes.x86 import ONNX_X86, ONNX_X86_NO_VNNI


def scheme_of(device: Device) -> Scheme:
    """The scheme for `device`; weights of 7 bits cannot saturate 16-bit sums on any CPU."""
    return ONNX_X86 if has_wide_weights(device) else ONNX_X86_NO_VNNI
