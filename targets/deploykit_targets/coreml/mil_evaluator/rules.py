"""All op tables in one, and the short list of registered ops that have no rule, with the reason of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from deploykit_targets.coreml.mil_evaluator import (
    ops_constexpr,
    ops_control,
    ops_conv,
    ops_elementwise,
    ops_gather,
    ops_image,
    ops_linear,
    ops_normalisation,
    ops_pool,
    ops_recurrent,
    ops_reduction,
    ops_shape,
    ops_slice,
    ops_tensor,
)
from deploykit_targets.coreml.mil_evaluator.operation import Op

_FAMILIES: Final = (
    ops_elementwise.OPS,
    ops_conv.OPS,
    ops_linear.OPS,
    ops_normalisation.OPS,
    ops_pool.OPS,
    ops_reduction.OPS,
    ops_shape.OPS,
    ops_slice.OPS,
    ops_gather.OPS,
    ops_tensor.OPS,
    ops_image.OPS,
    ops_recurrent.OPS,
    ops_control.OPS,
    ops_constexpr.OPS,
)

RULES: Final[Mapping[str, Op]] = MappingProxyType({name: op for family in _FAMILIES for name, op in family.items()})
"""Evaluation rule of every op that is a function of its inputs."""

SUPPORTED: Final[frozenset[str]] = frozenset(RULES) | ops_control.EXECUTOR_OPS
"""Every op that can be evaluated."""

IN_DISTRIBUTION: Final[frozenset[str]] = frozenset(
    {"random_bernoulli", "random_categorical", "random_normal", "random_uniform"}
)
"""Ops whose numbers differ from Core ML's; only their distribution is the same."""
