"""How the kernels of an instruction set want an int8 model quantized."""

from __future__ import annotations

from deploykit_calibration.scheme import TVM, TVM_X86, TVM_X86_NO_VNNI, QuantScheme


def scheme_of(activation: str, weight_bits: int = 8) -> QuantScheme:
    """The scheme for kernels that read `uint8` (x86) or `int8` (Arm) activations, and weights of 8 or 7 bits."""
    if activation != "uint8":
        return TVM
    return TVM_X86 if weight_bits == 8 else TVM_X86_NO_VNNI
