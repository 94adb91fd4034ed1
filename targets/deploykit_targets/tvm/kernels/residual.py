"""A tensor that a convolution adds to its result, before its one store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.kernels.expressions import (
    UNSCALED,
    Affine,
    Expr,
    cast,
    clip,
    fill,
    fma,
    limits_of,
    rounded,
    saturated,
    widen,
)
from deploykit_targets.tvm.kernels.script import T

_ZERO = 1.5 * 2**23  # in float32 the next number is one more
_ZERO_BITS = 0x4B400000


@dataclass(frozen=True)
class Residual:
    """A tensor of the output's shape that is added to a convolution's result before it is clipped and stored.

    Args:
        other: quantization of that tensor; unused where the output is float32, as the following are.
        to: scale and zero point of the sum.
        through: scale and zero point of the convolution's own result, where that is rounded before it is added, as the
            graph has it; then the constants lead to these. Without it they lead to those of `to`.
        through_limits: clip the convolution's own result to these, in quantized units of `through`.
        dtype: the dtype of that tensor, float32 or bfloat16's, where it is not that of the output.
    """

    other: Affine = UNSCALED
    to: Affine = UNSCALED
    through: Affine | None = None
    through_limits: tuple[float, float] | None = None
    dtype: str | None = None

    def sum(self, value: Expr, other: Expr, dot: Dot) -> Expr:
        """The sum in units of `to`, not yet clipped.

        Args:
            value: float32, the convolution's result as the constants scale it.
            other: as stored, eight bits.
        """
        lanes, offset = dot.lanes, -self.other.zero_point * self.other.scale / self.to.scale
        if self.through is not None:
            limits, ratio = self.through_limits or limits_of(dot.activation), self.through.scale / self.to.scale
            value = rounded(value, limits, lanes) * fill(ratio, "float32", lanes)
            offset += self.to.zero_point - self.through.zero_point * ratio
        scaled = widen(other, lanes) * fill(self.other.scale / self.to.scale, "float32", lanes)
        return value + (scaled + fill(offset, "float32", lanes))

    def bounded_sum(
        self,
        value: Expr,
        other: Expr,
        lanes: int,
        limits: tuple[float, float],
        saturate: Callable[[Expr], Expr],
    ) -> Expr:
        """The sum as int8, of a convolution whose sums are small (`packing.Bounded`); `through` is there.

        Integers become float32 as those sums do: by an addition to the bits of 1.5 * 2**23, where a conversion takes
        longer.

        Args:
            value: float32, the rounded result of the convolution, and 1.5 * 2**23 more.
            other: int8.
            limits, saturate: as `expressions.saturated` has them.
        """
        assert self.through is not None
        of, ratio = self.other.scale / self.to.scale, self.through.scale / self.to.scale
        zero = fill(_ZERO, "float32", lanes)
        own = clip(value - zero, self.through_limits or limits_of("int8"), "float32", lanes)
        bits = cast(cast(other, "int16", lanes), "int32", lanes) + fill(_ZERO_BITS, "int32", lanes)
        added = T.reinterpret(f"float32x{lanes}", bits) - zero
        offset = self.to.zero_point - self.through.zero_point * ratio - self.other.zero_point * of
        scaled = fma(added, fill(of, "float32", lanes), fill(offset, "float32", lanes), lanes)
        total = fma(own, fill(ratio, "float32", lanes), scaled, lanes) + zero
        return saturated(total, lanes, limits, saturate)
