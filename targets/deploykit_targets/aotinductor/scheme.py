"""Which quantization scheme PyTorch's compiler gets on this machine's CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.host import this_host
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import IN_FLOAT, INT8_IN_OUT, Scheme, no_kernel, with_rules
from deploykit_targets._schemes.recurrent import with_reasons
from deploykit_targets._schemes.x86 import ONNX_X86

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

# PyTorch's compiler gives convolution and linear to oneDNN, which adds a float bias and may write float; products of
# two activations stay float there.
AOTINDUCTOR = replace(
    ONNX_X86,
    name="aotinductor",
    bias="float",
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT, matmul=no_kernel("matmul")),
)
AOTINDUCTOR_NO_VNNI = replace(AOTINDUCTOR, name="aotinductor-no-vnni", reduce_range=True)


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for the CPU that compiles; without VNNI, weights of 7 bits keep 16-bit sums from saturating."""
    if request.precision is not Precision.INT8:
        return IN_FLOAT
    scheme = AOTINDUCTOR if this_host().has("vnni") else AOTINDUCTOR_NO_VNNI
    return with_reasons(scheme, captured, request)
