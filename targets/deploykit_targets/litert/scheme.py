"""How LiteRT wants an int8 model quantized."""

from __future__ import annotations

from deploykit_calibration.scheme import LITERT, QuantScheme


def scheme() -> QuantScheme:
    """The scheme of every LiteRT device: int8 affine activations, weights rounded in the file's own converter."""
    return LITERT
