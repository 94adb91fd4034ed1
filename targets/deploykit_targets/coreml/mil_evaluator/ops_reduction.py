"""MIL reductions, and index reductions.

`axes` absent reduces everything; an empty list of axes reduces nothing (NumPy's rule, not PyTorch's). Integer
inputs give integers: means, norms and logarithms are computed in float64 and truncated, as coremltools infers them.
Ties of argmax and argmin are undefined in MIL; the first index is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.operation import Op, axes_of, moves, rounds

_Reducer = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(dim=axes, keepdim=keep, dtype=x.dtype) if axes else x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(dim=axes, keepdim=keep) if axes else x


def _maximum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amax(dim=axes, keepdim=keep) if axes else x


def _minimum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amin(dim=axes, keepdim=keep) if axes else x


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(dim=axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep).sqrt()


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, dim=axes, keepdim=keep) if axes else x


def _reduction(reduce: _Reducer, *, through_float: bool = False) -> Callable[..., Tensor]:
    """A MIL reduction from a reducer over a list of axes.

    Args:
        reduce: the computation, over a non-negative list of axes.
        through_float: integers are computed in float64 and truncated.
    """

    def rule(x: Tensor, axes: Tensor | None = None, keep_dims: bool = False) -> Tensor:
        dims = axes_of(axes, x.ndim)
        if through_float and not x.is_floating_point():
            return reduce(x.double(), dims, keep_dims).trunc().to(x.dtype)
        return reduce(x, dims, keep_dims)

    return rule


def _argument(find: Callable[[Tensor, int, bool], Tensor]) -> Callable[..., Tensor]:
    def rule(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
        del output_dtype  # uint16 is carried in int32 as well
        return find(x, axis, keep_dims).to(torch.int32)

    return rule


OPS: Final[dict[str, Op]] = {
    "reduce_argmax": moves(_argument(lambda x, axis, keep: torch.argmax(x, dim=axis, keepdim=keep))),
    "reduce_argmin": moves(_argument(lambda x, axis, keep: torch.argmin(x, dim=axis, keepdim=keep))),
    "reduce_l1_norm": rounds(_reduction(_l1)),
    "reduce_l2_norm": rounds(_reduction(_l2, through_float=True)),
    "reduce_log_sum": rounds(_reduction(_log_sum, through_float=True)),
    "reduce_log_sum_exp": rounds(_reduction(_log_sum_exp, through_float=True)),
    "reduce_max": moves(_reduction(_maximum)),
    "reduce_mean": rounds(_reduction(_mean, through_float=True)),
    "reduce_min": moves(_reduction(_minimum)),
    "reduce_prod": rounds(_reduction(_product)),
    "reduce_sum": rounds(_reduction(_sum)),
    "reduce_sum_square": rounds(_reduction(_sum_square)),
}
"""Rules of this family, by MIL name."""
