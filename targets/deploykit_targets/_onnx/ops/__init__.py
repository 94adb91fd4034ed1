"""Translations of captured operators to ONNX: one table, filled by the modules of this package.

`TABLE` gives the function that writes an operator; each takes a `Call` (the node with its arguments bound
to their schema names) and returns the name(s) of the value(s) it wrote. An operator that is not in the table is
handed to PyTorch's own exporter, alone (`fallback.py`).
"""

from deploykit_targets._onnx.ops import (  # noqa: F401  (importing them fills the table)
    activation,
    arithmetic,
    convolution,
    creation,
    indexing,
    linear,
    normalisation,
    quantisation,
    recurrent,
    reduction,
    resize,
    shaping,
)
from deploykit_targets._onnx.ops.table import TABLE, Call, Value, translates

__all__ = ["TABLE", "Call", "Value", "translates"]
