# mypy: disable-error-code="no-any-return"
# (functions of PyTorch return Any)
"""Operators that coremltools has no converter for, or one that fails, as those that it converts.

PyTorch's own decompositions serve where there is one; the functions here have the arguments of their operator, and
return NotImplemented where coremltools' converter is right for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx import Graph

from deploykit.capture import plain, scatter

aten = torch.ops.aten


def has_converter(target: Any) -> bool:
    """Whether coremltools converts an operator."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as REGISTRY

    name = target.name() if hasattr(target, "name") else target.__name__
    return REGISTRY.get_func(name) is not None


def simpler(graph: Graph) -> dict[Any, Callable[..., Any]]:
    """The decompositions that a graph asks for: of its operators that have no converter, or not for every argument."""
    core = core_aten_decompositions()
    found: dict[Any, Callable[..., Any]] = {}
    for target in {node.target for node in graph.nodes if node.op == "call_function"}:
        if target in _OWN:
            found[target] = _OWN[target]
        elif target in core and (target in _FAILING or not has_converter(target)):
            found[target] = core[target]
    return found


def _argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Of all values where there is no axis: coremltools takes the last one then."""
    return NotImplemented if dim is not None else _place_of_all(torch.argmax, x, keepdim=keepdim)


def _argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return NotImplemented if dim is not None else _place_of_all(torch.argmin, x, keepdim=keepdim)


def _place_of_all(function: Callable[..., Tensor], x: Tensor, *, keepdim: bool) -> Tensor:
    found = function(x.reshape(-1), 0)
    return found.reshape([1] * x.dim()) if keepdim else found


def _unbatched(convolution: Any) -> Callable[..., Any]:
    """A convolution of one sample without a batch axis, which coremltools takes for a batch."""

    def run(x: Tensor, weight: Tensor, *rest: Any) -> Any:
        return NotImplemented if x.dim() == weight.dim() else convolution(x[None], weight, *rest)[0]

    return run


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = list(range(x.dim() - len(shape), x.dim()))
    small = torch.finfo(x.dtype).eps if eps is None else eps
    normal = x * torch.rsqrt((x * x).mean(axes, keepdim=True) + small)
    return normal if weight is None else normal * weight


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    rows = x.movedim((dim1, dim2), (-2, -1))
    height, width = rows.shape[-2:]
    first_row, first_column = max(-offset, 0), max(offset, 0)
    length = max(min(height - first_row, width - first_column), 0)
    places = torch.arange(length) * (width + 1) + (first_row * width + first_column)
    return rows.flatten(-2).index_select(-1, places)


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """coremltools leaves out which of the two it is."""
    if approximate == "none":
        return NotImplemented
    return x * 0.5 * (1 + torch.tanh((x + 0.044715 * x * x * x) * math.sqrt(2 / math.pi)))


def _where(condition: Tensor, chosen: Any, other: Any) -> Tensor:
    """Numbers in the dtype of the tensor beside them, which coremltools asks of both."""
    dtype = next(each.dtype for each in (chosen, other) if isinstance(each, Tensor))
    taken, left = (each if isinstance(each, Tensor) else torch.full((), each, dtype=dtype) for each in (chosen, other))
    return torch.where(condition, taken, left)


def _sinc(x: Tensor) -> Tensor:
    around = torch.where(x == 0, torch.full((), 1.0, dtype=x.dtype), x * math.pi)
    return torch.where(x == 0, torch.full((), 1.0, dtype=x.dtype), torch.sin(around) / around)


def _log_sigmoid(x: Tensor) -> Tensor:
    return -torch.nn.functional.softplus(-x)


def _ldexp(x: Tensor, exponent: Tensor) -> Tensor:
    return x * torch.exp2(exponent.to(x.dtype))


def _mse_loss(x: Tensor, target: Tensor, reduction: int = 1) -> Any:
    squares = (x - target) * (x - target)
    return (squares, squares.mean(), squares.sum())[reduction]


_OWN: dict[Any, Callable[..., Any]] = {
    aten.argmax.default: _argmax,
    aten.argmin.default: _argmin,
    aten.conv1d.default: _unbatched(aten.conv1d.default),
    aten.conv2d.default: _unbatched(aten.conv2d.default),
    aten.conv3d.default: _unbatched(aten.conv3d.default),
    aten.unfold.default: plain.unfold,
    aten.gelu.default: _gelu,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.sinc.default: _sinc,
    aten.special_sinc.default: _sinc,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.ldexp.Tensor: _ldexp,
    aten.mse_loss.default: _mse_loss,
    aten.col2im.default: plain.fold,  # coremltools has those whose windows do not overlap
    aten.prod.dim_int: plain.product,
    aten.lerp.Scalar: plain.lerp,
    aten.lerp.Tensor: plain.lerp,
    aten.xlogy.Tensor: plain.xlogy,
    aten.logaddexp2.default: plain.logaddexp2,
    aten.logcumsumexp.default: plain.logcumsumexp,
    aten.scatter_reduce.two: scatter.scatter_reduce,  # coremltools has a scatter that adds, and takes no other
    aten.rms_norm.default: _rms_norm,
    aten.diagonal.default: _diagonal,
    aten.asinh.default: plain.asinh,
    aten.acosh.default: plain.acosh,
    aten.trunc.default: plain.trunc,
    aten.fix.default: plain.trunc,
    aten.fmod.Scalar: plain.fmod,
    aten.fmod.Tensor: plain.fmod,
    aten.erfc.default: plain.erfc,
    aten.isinf.default: plain.isinf,
    aten.round.decimals: plain.round_to,
    aten.logaddexp.default: plain.logaddexp,
}
_FAILING = {aten.affine_grid_generator.default}
"""Converters that raise whatever they are given: this one is for models of `torch.jit` only."""
