"""Names of tensor types: of the Open Inference Protocol (Triton's `TYPE_` names are these) and of NumPy."""

from __future__ import annotations

import numpy as np

from deploykit.contract.tensors import TensorSpec

_NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {numpy: name for name, numpy in _NUMPY.items()}
BINARY_ONLY = frozenset({"FP16", "BF16"})
"""Types that JSON has no numbers for; the protocol sends them as binary data."""
UNSERVED = frozenset({"BYTES", "BF16"})
"""Types of the protocol that no artifact has: strings, and what NumPy has no type for."""


def datatype_of(spec: TensorSpec) -> str:
    """The protocol's name of a tensor's type."""
    return _NAMES[spec.dtype]


def datatype_of_array(array: np.ndarray) -> str:
    """The protocol's name of an array's type."""
    return _NAMES[array.dtype.name]


def shape_of(spec: TensorSpec) -> list[int]:
    """The shape as the protocol has it: -1 for an axis that may be of any size."""
    return [-1 if isinstance(size, str) else size for size in spec.shape]
