"""How the kernels of an instruction set want an int8 model quantized."""

from __future__ import annotations

from dataclasses import replace

from deploykit_calibration.scheme import TVM, UINT8_AFFINE, FixedParams, QuantScheme

_X86 = replace(TVM, name="tvm-x86", activation=UINT8_AFFINE, fixed_outputs={"softmax": FixedParams(1 / 256, 0)})


def scheme_of(activation: str) -> QuantScheme:
    """The scheme for kernels that read `uint8` (x86) or `int8` (Arm) activations."""
    return _X86 if activation == "uint8" else TVM
