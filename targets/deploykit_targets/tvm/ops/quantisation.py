"""quantize and dequantize nodes: for activations a note on the value, for weights numbers with scales.

Casts to bfloat16 are such notes, too: the value is held in 16 bits, and stands for the same kind of numbers.
"""

from __future__ import annotations

import numpy as np
import torch

from deploykit_targets.tvm.expression import rounded
from deploykit_targets.tvm.kernels.bfloat16 import AS_FLOAT, BFLOAT16, from_bits, narrowed, to_bits
from deploykit_targets.tvm.ops.table import Call, affine_of, consumers, is_bfloat16, lowers, quantization_of
from deploykit_targets.tvm.values import Constant, Lazy, Tensor


@lowers("quantized_decomposed.quantize_per_tensor.default")
def quantize(c: Call) -> Tensor:
    """Rounded when it is needed in memory; nothing where the value already is integers of the same meaning."""
    value = c.tensor("input")
    affine, dtype, codes = quantization_of(c.node)
    if affine_of(value) == affine:
        return value
    rest = c.node.args[1:]
    target = c.node.target
    return Lazy(
        value.shape,
        dtype,
        lambda v, n: rounded(v[0], affine, dtype, codes, n),
        (value,),
        ("float32",),
        f"q[{affine.scale!r},{affine.zero_point},{dtype},{codes}]",
        lambda x: target(x, *rest),  # type: ignore[operator]
        affine=affine,
        shared=consumers(c.node) > 1,
    )


def narrow(c: Call) -> Tensor:
    """A cast to bfloat16; of a weight, the rounded numbers."""
    value = c.tensor("self")
    if isinstance(value, Constant):
        return Constant(from_bits(to_bits(value.real)))
    if is_bfloat16(value):
        return value
    return Lazy(
        value.shape,
        BFLOAT16,
        lambda v, n: narrowed(v[0], n),
        (value,),
        ("float32",),
        "bfloat16",
        lambda x: x.to(torch.bfloat16),
        affine=AS_FLOAT,
        shared=consumers(c.node) > 1,
    )


@lowers("quantized_decomposed.dequantize_per_tensor.default")
def dequantize(c: Call) -> Tensor:
    """The same value: integers with scale and zero point stand for real numbers."""
    value = c.tensor("input")
    if not isinstance(value, Constant):
        return value
    centred = value.array.astype(np.int32) - int(c["zero_point"])
    return Constant(centred, np.asarray([c["scale"]], np.float32))


@lowers("quantized_decomposed.dequantize_per_channel.default")
def dequantize_channels(c: Call) -> Tensor:
    """A weight: integers with one scale per channel; zero points are zero."""
    value, scales = c.constant("input"), c.constant("scales")
    assert value is not None and scales is not None
    return Constant(value.array, scales.array.astype(np.float32), int(c["axis"]))
