"""MIL dtypes, the PyTorch types that carry them, and the one rounding rule.

A value of MIL type `fp16` is carried as float32 whose every element is representable in half. An op computes in
float32 and its result is rounded ONCE to half (round to nearest, ties to even; beyond 65504 to infinity; half
subnormals kept). That is the most accurate float16 evaluation there is; hardware that accumulates in half, or
rounds inside a fused kernel, differs from it by its own error, never the other way round. Halves on a CPU are also
20 times slower than floats, so the rule is the fast one too.

Integers are carried in a type at least as wide, because PyTorch has little arithmetic on uint16 and uint32.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

CARRIERS: Final[dict[str, torch.dtype]] = {
    "fp16": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "int64": torch.int64,
    "uint64": torch.int64,
    "int4": torch.int8,
    **{f"uint{bits}": torch.uint8 for bits in (1, 2, 3, 4, 6)},
}
"""PyTorch type that carries each MIL type."""

_NUMPY: Final[dict[str, Any]] = {
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "bool": np.bool_,
    "int4": np.int8,
    **{f"uint{bits}": np.uint8 for bits in (1, 2, 3, 4, 6)},
}
_INTEGER_BITS: Final[dict[str, int]] = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}


def numpy_dtype(mil: str) -> np.dtype[Any]:
    """NumPy type of arrays that enter or leave with MIL type `mil`."""
    kind: Any = _NUMPY.get(mil, mil)
    result: np.dtype[Any] = np.dtype(kind)
    return result


def round_to_half(value: Tensor) -> Tensor:
    """float32 -> float32 with every element representable in half, rounded once.

    Args:
        value: any float tensor.
    """
    return value.to(torch.float16).to(torch.float32)


def to_carrier(array: np.ndarray[Any, Any], mil: str) -> Tensor:
    """An array of MIL type `mil` as the tensor that carries it; float values are rounded to `mil` first."""
    array = np.asarray(array)
    if mil == "fp16":
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.array(array.astype(np.float16), dtype=np.float32, order="C"))
    plain = np.asarray(array, dtype=numpy_dtype(mil), order="C")
    if plain.dtype in (np.uint16, np.uint32, np.uint64):
        plain = plain.astype(np.int32 if plain.dtype == np.uint16 else np.int64)
    if not plain.flags.writeable or plain.dtype.metadata is not None:
        plain = np.array(plain, dtype=np.dtype(plain.dtype.str))
    return torch.from_numpy(plain).to(CARRIERS[mil])


def to_numpy(value: Tensor, mil: str) -> np.ndarray[Any, Any]:
    """A carried value as an array of its MIL type; always a copy that the caller may keep."""
    with np.errstate(over="ignore"):
        return np.array(value.detach().numpy(), dtype=numpy_dtype(mil))


def wrap_integer(value: Tensor, mil: str) -> Tensor:
    """int64 values reduced modulo 2^bits into the range of integer type `mil`, in its carrier.

    A cast outside the target's range is undefined in MIL; this is NumPy's rule, which coremltools uses when it
    folds constants.
    """
    bits = _INTEGER_BITS[mil]
    value = value & ((1 << bits) - 1)
    if not mil.startswith("u"):
        value = torch.where(value >= 1 << (bits - 1), value - (1 << bits), value)
    return value.to(CARRIERS[mil])


def cast(value: Tensor, mil: str) -> Tensor:
    """Value cast to MIL type `mil`: floats to integers towards zero, anything to bool by `!= 0`.

    float16 results are not rounded here: the executor rounds every op's output.
    """
    if mil in ("fp16", "fp32", "fp64"):
        return value.to(CARRIERS[mil])
    if mil == "bool":
        return value != 0
    if value.is_floating_point():
        value = torch.nan_to_num(value.double(), nan=0.0, posinf=2.0**62, neginf=-(2.0**62)).clamp(-(2.0**62), 2.0**62)
    return wrap_integer(value.to(torch.int64), mil)
