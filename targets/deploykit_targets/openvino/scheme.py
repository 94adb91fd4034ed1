"""Which quantization scheme an x86 device gets from OpenVINO."""

from __future__ import annotations

from dataclasses import replace

from deploykit.contract.devices import Device
from deploykit.contract.scheme import INT8_IN_OUT, Scheme, with_rules
from deploykit_targets._onnx.vnni import has_wide_weights
from deploykit_targets._schemes.x86 import ONNX_X86

# Reads the same file; its convolutions may write float.
OPENVINO = replace(ONNX_X86, name="openvino", rules=with_rules(ONNX_X86, conv=INT8_IN_OUT))


def scheme_of(device: Device) -> Scheme:
    """The scheme for `device`; weights of 7 bits cannot saturate 16-bit sums on any CPU."""
    return OPENVINO if has_wide_weights(device) else replace(OPENVINO, name="openvino-no-vnni", reduce_range=True)
