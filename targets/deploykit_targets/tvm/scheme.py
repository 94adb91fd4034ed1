"""How the kernels of an instruction set want an int8 model quantized."""

from __future__ import annotations

from deploykit_calibration.scheme import TVM, TVM_X86, QuantScheme


def scheme_of(activation: str) -> QuantScheme:
    """The scheme for kernels that read `uint8` (x86) or `int8` (Arm) activations."""
    return TVM_X86 if activation == "uint8" else TVM
