"""Weights of a layer: float32, float16, or integers of 1 to 8 bits with scales or a table; decoded to float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploykit.contract.errors import ArtifactError


def tensor(weights: Any, shape: Sequence[int], *, axis: int = 0) -> Tensor:
    """Decode the `WeightParams` of a layer.

    Args:
        weights: protobuf message.
        shape: the shape of the tensor.
        axis: the axis that holds the scales of linear quantization, where there is more than one.
    Returns:
        float32, of that shape.
    Raises:
        ArtifactError: the message holds another number of values, or no known form.
    """
    count = math.prod(shape)
    values = _values(weights, count)
    if values.size != count:
        raise ArtifactError(f"a layer has {values.size} weights where its shape {tuple(shape)} wants {count}")
    decoded = _dequantized(weights.quantization, values.reshape(shape), axis) if weights.rawValue else values
    return torch.from_numpy(np.array(decoded, dtype=np.float32).reshape(shape))


def stored(weights: Any) -> str:
    """How weights are stored: `float32`, `float16`, `int8`, `6-bit palette`; "" where there are none."""
    if len(weights.floatValue):
        return "float32"
    if weights.float16Value:
        return "float16"
    if not weights.rawValue:
        return ""
    bits = weights.quantization.numberOfBits
    palette = weights.quantization.WhichOneof("QuantizationType") == "lookupTableQuantization"
    return f"{bits}-bit palette" if palette else f"int{bits}"


def _values(weights: Any, count: int) -> np.ndarray[Any, Any]:
    if len(weights.floatValue):
        return np.asarray(weights.floatValue, dtype=np.float32)
    if weights.float16Value:
        return np.frombuffer(weights.float16Value, dtype="<f2")
    if weights.int8RawValue:
        raise ArtifactError("weights of int8 with quantized activations are not in any form that is evaluated here")
    return _unpacked(np.frombuffer(weights.rawValue, dtype=np.uint8), weights.quantization.numberOfBits, count)


def _unpacked(data: np.ndarray[Any, Any], bits: int, count: int) -> np.ndarray[Any, Any]:
    """Integers that are packed one after the other, highest bit first."""
    if bits == 8 or not data.size:
        return data
    if not 1 <= bits < 8:
        raise ArtifactError(f"a layer has weights of {bits} bits, which are none of 1 to 8")
    bit = np.unpackbits(data)
    rows: np.ndarray[Any, Any] = bit[: min(bit.size // bits, count) * bits].reshape(-1, bits)
    found: np.ndarray[Any, Any] = rows @ (1 << np.arange(bits - 1, -1, -1))
    return found


def _dequantized(quantization: Any, values: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """scale x integer + bias, or the entry of the table."""
    if quantization.WhichOneof("QuantizationType") == "lookupTableQuantization":
        table = np.asarray(quantization.lookupTableQuantization.floatValue, dtype=np.float32)
        if int(values.max(initial=0)) >= table.size:
            raise ArtifactError(f"a layer's weights point outside their table of {table.size} values")
        found: np.ndarray[Any, Any] = table[values]
        return found
    linear = quantization.linearQuantization
    shape = [1] * values.ndim
    shape[axis] = -1
    scale, bias = (np.asarray(part, dtype=np.float32) for part in (linear.scale, linear.bias))
    for part in (scale, bias):
        if part.size not in (0, 1, values.shape[axis]):
            raise ArtifactError(f"a layer has {part.size} scales or biases for {values.shape[axis]} channels")
    scaled: np.ndarray[Any, Any] = values * (scale.reshape(shape) if scale.size else np.float32(1))
    return scaled + bias.reshape(shape) if bias.size else scaled
