"""Elementwise MIL ops: unary, binary, comparisons, logic, activations, casts and activation quantisation.

Integer rules: `floor_div` and `mod` round the quotient towards minus infinity (as Python does), `real_div` of
integers gives integers and rounds towards zero, dividing an integer by zero is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.dtypes import CARRIERS, cast
from deploykit_targets.coreml.mil_evaluator.operation import Context, Op, OpTable, moves, per_channel, rounds

Number = Tensor | float
_QUANTIZED_RANGES: Final = {"int8": (-128, 127), "uint8": (0, 255)}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """PyTorch's function under MIL's parameter name."""

    def rule(x: Tensor) -> Tensor:
        return function(x)

    return rule


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """PyTorch's function under MIL's parameter names."""

    def rule(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return rule


# --- unary ----------------------------------------------------------------------------------------------------


def _exp2(x: Tensor) -> Tensor:
    return torch.exp2(x.double()).to(x.dtype)


def _inverse(x: Tensor, epsilon: Number) -> Tensor:
    return torch.reciprocal(x + epsilon)


def _log(x: Tensor, epsilon: Number) -> Tensor:
    return torch.log(x + epsilon)


def _rsqrt(x: Tensor, epsilon: Number) -> Tensor:
    return torch.rsqrt(x + epsilon)


def _clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x, alpha, beta)


def _threshold(x: Tensor, alpha: float) -> Tensor:
    return torch.clamp_min(x, alpha)


def _cast(x: Tensor, dtype: str, context: Context) -> Tensor:
    # The declared type is the loader's spelling of `dtype` ("float" and "fp32" are one type).
    return cast(x, context.outputs[0].dtype)


# --- binary ---------------------------------------------------------------------------------------------------


def _real_div(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point() or y.is_floating_point():
        return torch.true_divide(x, y)
    return torch.div(x, y, rounding_mode="trunc")


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


def _pow(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point() or y.is_floating_point():
        return torch.pow(x, y)
    return torch.pow(x.double(), y.double()).to(x.dtype)


def _select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


# --- activations ----------------------------------------------------------------------------------------------


def _clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp_max(torch.where(x >= 0, x, alpha * x), beta)


def _elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(torch.clamp_max(x, 0)))


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


def _linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x * alpha + beta


def _prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, per_channel(alpha, x.ndim) * x)


def _scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


def _sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return per_channel(alpha, x.ndim) * _softplus(per_channel(beta, x.ndim) * x)


def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, dim=axis)


def _thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, torch.zeros_like(x))


# --- quantisation of activations ------------------------------------------------------------------------------


def _along(parameter: Number, rank: int, axis: int | None) -> Tensor:
    """A scale or zero point (rank 0 or 1), shaped to broadcast along `axis`."""
    tensor = torch.as_tensor(parameter, dtype=torch.float32)
    return tensor if tensor.ndim == 0 or axis is None else per_channel(tensor, rank, axis % rank)


def _quantize(
    input: Tensor,
    scale: Number,
    output_dtype: str,
    zero_point: Number | None = None,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point); ties to even, as coremltools' own inference."""
    low, high = _QUANTIZED_RANGES[output_dtype]
    steps = torch.round(input / _along(scale, input.ndim, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point, input.ndim, axis)
    return torch.nan_to_num(torch.clamp(steps, low, high), nan=0.0).to(CARRIERS[output_dtype])


def _dequantize(
    input: Tensor,
    scale: Number,
    zero_point: Number | None = None,
    axis: int | None = None,
) -> Tensor:
    """scale * (input - zero_point)."""
    value = input.to(torch.float32)
    if zero_point is not None:
        value = value - _along(zero_point, input.ndim, axis)
    return value * _along(scale, input.ndim, axis)


_UNARY: OpTable = {
    "abs": moves(_unary(torch.abs)),
    "acos": rounds(_unary(torch.acos)),
    "asin": rounds(_unary(torch.asin)),
    "atan": rounds(_unary(torch.atan)),
    "atanh": rounds(_unary(torch.atanh)),
    "cast": rounds(_cast, context=True),
    "ceil": moves(_unary(torch.ceil)),
    "clip": rounds(_clip),
    "cos": rounds(_unary(torch.cos)),
    "cosh": rounds(_unary(torch.cosh)),
    "erf": rounds(_unary(torch.erf)),
    "exp": rounds(_unary(torch.exp)),
    "exp2": rounds(_exp2),
    "floor": moves(_unary(torch.floor)),
    "inverse": rounds(_inverse),
    "log": rounds(_log),
    "logical_not": moves(_unary(torch.logical_not)),
    "round": moves(_unary(torch.round)),
    "rsqrt": rounds(_rsqrt),
    "sign": moves(_unary(torch.sign)),
    "sin": rounds(_unary(torch.sin)),
    "sinh": rounds(_unary(torch.sinh)),
    "sqrt": rounds(_unary(torch.sqrt)),
    "square": rounds(_unary(lambda x: x * x)),
    "tan": rounds(_unary(torch.tan)),
    "tanh": rounds(_unary(torch.tanh)),
    "threshold": rounds(_threshold),
}

_BINARY: OpTable = {
    "add": rounds(_binary(torch.add)),
    "equal": moves(_binary(torch.eq)),
    "floor_div": rounds(_floor_div),
    "greater": moves(_binary(torch.gt)),
    "greater_equal": moves(_binary(torch.ge)),
    "less": moves(_binary(torch.lt)),
    "less_equal": moves(_binary(torch.le)),
    "logical_and": moves(_binary(torch.logical_and)),
    "logical_or": moves(_binary(torch.logical_or)),
    "logical_xor": moves(_binary(torch.logical_xor)),
    "maximum": moves(_binary(torch.maximum)),
    "minimum": moves(_binary(torch.minimum)),
    "mod": rounds(_binary(torch.remainder)),
    "mul": rounds(_binary(torch.mul)),
    "not_equal": moves(_binary(torch.ne)),
    "pow": rounds(_pow),
    "real_div": rounds(_real_div),
    "select": moves(_select),
    "sub": rounds(_binary(torch.sub)),
}

_ACTIVATIONS: OpTable = {
    "clamped_relu": rounds(_clamped_relu),
    "elu": rounds(_elu),
    "gelu": rounds(_gelu),
    "leaky_relu": rounds(_leaky_relu),
    "linear_activation": rounds(_linear_activation),
    "prelu": rounds(_prelu),
    "relu": moves(_unary(torch.relu)),
    "relu6": moves(_unary(F.relu6)),
    "scaled_tanh": rounds(_scaled_tanh),
    "sigmoid": rounds(_unary(torch.sigmoid)),
    "sigmoid_hard": rounds(_sigmoid_hard),
    "silu": rounds(_unary(F.silu)),
    "softmax": rounds(_softmax),
    "softplus": rounds(_softplus),
    "softplus_parametric": rounds(_softplus_parametric),
    "softsign": rounds(_unary(F.softsign)),
    "thresholded_relu": moves(_thresholded_relu),
}

OPS: Final[dict[str, Op]] = {
    **_UNARY,
    **_BINARY,
    **_ACTIVATIONS,
    "quantize": moves(_quantize),
    "dequantize": rounds(_dequantize),
}
"""Rules of this family, by MIL name."""
