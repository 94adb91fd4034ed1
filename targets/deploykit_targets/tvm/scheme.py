"""How the kernels of an instruction set want an int8 model quantized."""

from __future__ import annotations

from dataclasses import replace

from deploykit.contract.formats import INT8_AFFINE, INT8_CHANNELS, UINT8_AFFINE
from deploykit.contract.scheme import INT8_IN_OUT, FixedParams, Scheme, with_rules
from deploykit_targets._schemes.x86 import ONNX_X86

# The generated kernels multiply int8 by int8 (sdot), fold the zero-point into the bias and requantize at once.
TVM = Scheme(
    name="tvm",
    activation=INT8_AFFINE,
    weight=INT8_CHANNELS,
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT),
    fixed_outputs={"softmax": FixedParams(1 / 256, -128)},
    symmetric_second=frozenset({"matmul"}),
)
# x86 multiplies unsigned by signed bytes.
TVM_X86 = replace(TVM, name="tvm-x86", activation=UINT8_AFFINE, fixed_outputs={"softmax": FixedParams(1 / 256, 0)})
TVM_X86_NO_VNNI = replace(TVM_X86, name="tvm-x86-no-vnni", reduce_range=True)


def scheme_of(activation: str, weight_bits: int = 8) -> Scheme:
    """The scheme for kernels that read `uint8` (x86) or `int8` (Arm) activations, and weights of 8 or 7 bits."""
    if activation != "uint8":
        return TVM
    return TVM_X86 if weight_bits == 8 else TVM_X86_NO_VNNI
