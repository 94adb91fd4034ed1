"""Which quantization scheme an x86 device gets from ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.formats import INT4_CHANNELS, PerGroup
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import IN_FLOAT, Scheme
from deploykit_targets._onnx.vnni import has_wide_weights
from deploykit_targets._schemes.x86 import ONNX_X86, ONNX_X86_NO_VNNI

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for a request; weights of 7 bits cannot saturate 16-bit sums on any CPU."""
    del captured
    if request.precision is Precision.INT4_WEIGHT_ONLY:
        return replace(IN_FLOAT, weight=replace(INT4_CHANNELS, granularity=PerGroup(request.options.block_size)))
    if request.precision is not Precision.INT8:
        return IN_FLOAT
    return ONNX_X86 if has_wide_weights(request.device) else ONNX_X86_NO_VNNI
