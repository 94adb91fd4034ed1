"""How Core ML wants a model quantized, and the oldest op set that has each precision."""

from __future__ import annotations

from deploykit.contract.precision import Precision
from deploykit_calibration.scheme import COREML, QuantScheme

SCHEME: QuantScheme = COREML
"""Affine int8 activations, symmetric int8 weights per channel; softmax outputs and residual streams as in `COREML`."""

OP_SETS = ("iOS16", "iOS17", "iOS18")
"""Names of coremltools' deployment targets, oldest first. iOS15 takes no float16 inputs and no `quantize` ops."""

OS_FLOOR = {
    "iOS16": "iOS 16, macOS 13",
    "iOS17": "iOS 17, macOS 14",
    "iOS18": "iOS 18, macOS 15",
}
"""Oldest systems that run a program of each op set."""

_NEEDED = {Precision.INT8: "iOS17", Precision.INT4_WEIGHT_ONLY: "iOS18"}


def op_set_of(wanted: str, precision: Precision) -> str:
    """The op set to convert to: the wanted one, or a newer one where the precision needs it.

    `quantize` and `dequantize` came with iOS17; 4-bit integers and scales per block with iOS18.
    """
    return max(wanted, _NEEDED.get(precision, OP_SETS[0]), key=OP_SETS.index)
