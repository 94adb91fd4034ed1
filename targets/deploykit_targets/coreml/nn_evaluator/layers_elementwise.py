"""Activations, unary and binary layers, comparisons. Truth values are 1.0 and 0.0, as networks carry them."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.nn_evaluator.layer import FormError, Function, LayerTable, Rule, plain
from deploykit_targets.coreml.nn_evaluator.weights import tensor

_Unary = Callable[[Tensor], Tensor]
_Binary = Callable[[Tensor, Tensor], Tensor]


def _per_channel(weights: Any) -> Tensor:
    """Parameters for each channel, or one for all, against (..., C, H, W)."""
    count = len(weights.floatValue) or len(weights.float16Value) // 2
    return tensor(weights, (count,)).reshape((-1, 1, 1) if count > 1 else ())


def _activation(p: Any) -> Function:
    kind = p.WhichOneof("NonlinearityType")
    own = getattr(p, kind)
    match kind:
        case "ReLU":
            return torch.relu
        case "tanh":
            return torch.tanh
        case "sigmoid":
            return torch.sigmoid
        case "softsign":
            return F.softsign
        case "softplus":
            return lambda x: torch.logaddexp(x, torch.zeros(()))
        case "linear":
            return lambda x: own.alpha * x + own.beta
        case "leakyReLU":
            return lambda x: torch.where(x < 0, own.alpha * x, x)
        case "thresholdedReLU":
            return lambda x: torch.where(x > own.alpha, x, torch.zeros(()))
        case "scaledTanh":
            return lambda x: own.alpha * torch.tanh(own.beta * x)
        case "sigmoidHard":
            return lambda x: (own.alpha * x + own.beta).clamp(0, 1)
        case "ELU":
            return lambda x: torch.where(x < 0, own.alpha * torch.expm1(x), x)
    return _learned_activation(kind, own)


def _learned_activation(kind: str, own: Any) -> Function:
    """Activations with a parameter for each channel."""
    alpha = _per_channel(own.alpha)
    if kind == "PReLU":
        return lambda x: torch.where(x < 0, alpha * x, x)
    if kind != "parametricSoftplus":
        raise FormError(f"the activation {kind}")
    beta = _per_channel(own.beta)
    return lambda x: alpha * torch.logaddexp(beta * x, torch.zeros(()))


def _unary(p: Any) -> Function:
    """A function of scale x input + shift."""
    functions: dict[int, _Unary] = {
        p.SQRT: torch.sqrt,
        p.RSQRT: lambda x: torch.rsqrt(x + p.epsilon),
        p.INVERSE: lambda x: 1 / (x + p.epsilon),
        p.POWER: lambda x: x**p.alpha,
        p.EXP: torch.exp,
        p.LOG: lambda x: torch.log(x + p.epsilon),
        p.ABS: torch.abs,
        p.THRESHOLD: lambda x: x.clamp_min(p.alpha),
    }
    function = functions[p.type]
    scale = p.scale or 1.0  # zero is how the format leaves it out
    return lambda x: function(scale * x + p.shift)


def _gelu(p: Any) -> Function:
    if p.mode == p.EXACT:
        return F.gelu
    if p.mode == p.TANH_APPROXIMATION:
        return lambda x: F.gelu(x, approximate="tanh")
    return lambda x: x * torch.sigmoid(1.702 * x)


def _joined(function: _Binary) -> Rule:
    """Two inputs or more, or one and the layer's `alpha`."""

    def rule(p: Any) -> Function:
        def run(*values: Tensor) -> Tensor:
            return reduce(function, values) if len(values) > 1 else function(values[0], torch.tensor(p.alpha))

        return run

    return rule


def _compared(function: _Binary) -> Rule:
    def rule(p: Any) -> Function:
        def run(x: Tensor, *other: Tensor) -> Tensor:
            return function(x, other[0] if other else torch.tensor(p.alpha)).float()

        return run

    return rule


def _logical(function: Callable[..., Tensor]) -> Rule:
    return plain(lambda *values: function(*(value != 0 for value in values)).float())


def _average(*values: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*values)).mean(0)


_BROADCASTABLE: Final[dict[str, _Binary]] = {
    "add": torch.add,
    "divide": torch.div,
    "floorDiv": lambda x, y: torch.floor(x / y),
    "max": torch.maximum,
    "min": torch.minimum,
    "mod": torch.remainder,
    "multiply": torch.mul,
    "pow": torch.pow,
    "subtract": torch.sub,
}

OPS: Final[LayerTable] = {
    "activation": _activation,
    "add": _joined(torch.add),
    "average": plain(_average),
    "clampedReLU": lambda p: lambda x: torch.where(x >= 0, x, p.alpha * x).clamp_max(p.beta),
    "clip": lambda p: lambda x: x.clamp(p.minVal, p.maxVal),
    "exp2": plain(torch.exp2),
    "gelu": _gelu,
    "max": plain(lambda *values: reduce(torch.maximum, values)),
    "min": plain(lambda *values: reduce(torch.minimum, values)),
    "multiply": _joined(torch.mul),
    "round": plain(torch.round),
    "sign": plain(torch.sign),
    "unary": _unary,
    "whereBroadcastable": plain(lambda mask, x, y: torch.where(mask != 0, x, y)),
    **{
        name: plain(getattr(torch, name))
        for name in (
            *("acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf"),
            *("floor", "sin", "sinh", "tan", "tanh"),
        )
    },
    **{f"{name}Broadcastable": plain(function) for name, function in _BROADCASTABLE.items()},
    "equal": _compared(torch.eq),
    "greaterEqual": _compared(torch.ge),
    "greaterThan": _compared(torch.gt),
    "lessEqual": _compared(torch.le),
    "lessThan": _compared(torch.lt),
    "logicalAnd": _logical(torch.logical_and),
    "logicalNot": _logical(torch.logical_not),
    "logicalOr": _logical(torch.logical_or),
    "logicalXor": _logical(torch.logical_xor),
    "notEqual": _compared(torch.ne),
}
"""Rules of this family, by the name of the layer's parameters."""
