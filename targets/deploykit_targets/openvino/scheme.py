"""Which quantization scheme an x86 device gets from OpenVINO."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.precision import Precision
from deploykit.contract.scheme import IN_FLOAT, INT8_IN_OUT, Scheme, with_rules
from deploykit_targets._onnx.vnni import has_wide_weights
from deploykit_targets._schemes.recurrent import with_reasons
from deploykit_targets._schemes.x86 import ONNX_X86

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

# Reads the same file; its convolutions may write float.
OPENVINO = replace(ONNX_X86, name="openvino", rules=with_rules(ONNX_X86, conv=INT8_IN_OUT))


OPENVINO_NO_VNNI = replace(OPENVINO, name="openvino-no-vnni", reduce_range=True)


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for a request; weights of 7 bits cannot saturate 16-bit sums on any CPU."""
    if request.precision is not Precision.INT8:
        return IN_FLOAT
    scheme = OPENVINO if has_wide_weights(request.device) else OPENVINO_NO_VNNI
    return with_reasons(scheme, captured, request)
