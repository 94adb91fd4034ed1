"""Translations of ATen operators to kernels; importing this package fills the table."""

from deploykit_targets.tvm.ops import (  # noqa: F401 -- each registers its translations
    activations,
    alias,
    arithmetic,
    convolution,
    indexing,
    joining,
    linear,
    logic,
    pooling,
    quantisation,
    resize,
    rows,
)
from deploykit_targets.tvm.ops.table import Call, NotCoveredError, known_operators, lookup

__all__ = ["Call", "NotCoveredError", "known_operators", "lookup"]
