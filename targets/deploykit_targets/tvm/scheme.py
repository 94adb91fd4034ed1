"""How the kernels of an instruction set want an int8 model quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.formats import INT8_AFFINE, INT8_CHANNELS, UINT8_AFFINE
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import IN_FLOAT, INT8_IN_OUT, Scheme, with_rules
from deploykit_targets._schemes.x86 import ONNX_X86

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

# The generated kernels multiply int8 by int8 (sdot), fold the zero-point into the bias and requantize at once. A bias
# of whole multiples is what their sums can start from (`kernels.packing.Bounded`).
TVM = Scheme(
    name="tvm",
    activation=INT8_AFFINE,
    weight=INT8_CHANNELS,
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT),
    bias="int32",
    bounded_outputs={"softmax": 1.0},
    symmetric_second=frozenset({"matmul"}),
)
# x86 multiplies unsigned by signed bytes.
TVM_X86 = replace(TVM, name="tvm-x86", bias="float", activation=UINT8_AFFINE)
TVM_X86_NO_VNNI = replace(TVM_X86, name="tvm-x86-no-vnni", reduce_range=True)


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for the kernels of the device: they read uint8 (x86) or int8 (Arm), and weights of 8 or 7 bits."""
    from deploykit_targets.tvm.kernels.isa import isa
    from deploykit_targets.tvm.processor import processor_of

    del captured
    if request.precision is not Precision.INT8:
        return IN_FLOAT
    kernels = isa(processor_of(request.device).isa).int8
    if kernels.activation != "uint8":
        return TVM
    return TVM_X86 if kernels.largest_weight > 64 else TVM_X86_NO_VNNI
