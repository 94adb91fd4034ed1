# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""Any function of one eight-bit value, as a table of its 256 results: activations that are no clipping.

Results are those of the table, exactly; whoever makes it decides how they are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from deploykit_targets.tvm.kernels.expressions import Affine, Expr, limits_of
from deploykit_targets.tvm.kernels.packing import Array
from deploykit_targets.tvm.kernels.script import T

ENTRIES = 256
_SHARE = 4096  # elements of a task
_TOGETHER = 8  # independent look-ups


def make_table(function: Callable[[Array], Array], source: str, dtype: str, of: Affine, to: Affine) -> Array:
    """The table of a real function between two quantizations, rounded half to even.

    Args:
        function: the function of float64 values, element by element.
        source, dtype: eight-bit dtypes of input and output.
        of, to: their quantization.
    Returns:
        Shape (256,), dtype `dtype`, in the order of `table`.
    """
    low, high = limits_of(source)
    real = (np.arange(low, high + 1, dtype=np.float64) - of.zero_point) * of.scale
    with np.errstate(over="ignore"):
        value = np.rint(function(real) / to.scale) + to.zero_point
    entries: Array = np.clip(value, *limits_of(dtype)).astype(dtype)
    return entries


def table(length: int, source: str, dtype: str) -> Expr:
    """Generate the kernel: (input, table, output), flat; input and output have `length` elements.

    Args:
        source, dtype: eight-bit dtypes. Entry 0 is for the smallest value of `source`.
    """
    low = limits_of(source)[0]
    together = math.gcd(length, _TOGETHER)
    groups = length // together
    share = min(groups, _SHARE // together)

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((length,), source),
        t: T.Buffer((ENTRIES,), dtype),
        y: T.Buffer((length,), dtype),
    ):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(math.ceil(groups / share)):
            for g in T.serial(T.min(share, groups - task * share)):
                for i in T.unroll(together):
                    y[(task * share + g) * together + i] = t[
                        T.Cast("int32", a[(task * share + g) * together + i]) - low
                    ]

    return kernel
