"""`Scheme`: how a target wants a model quantized for one request, as data. Nothing here knows a target.

A target's own `scheme.py` writes one of these, or derives it from a base that several share:

    OWN = replace(ONNX_X86, rules=with_rules(ONNX_X86, conv_transpose=INT8))

Placement reads the scheme and nothing else about the target; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from deploykit.contract.formats import FLOAT32, INT8_ROWS, TensorScheme


class Inputs(StrEnum):
    """When the activation inputs of an op are quantized."""

    INT8 = "int8"  # always: the op asks for quantized inputs
    FOLLOW = "follow"  # where all of them are integers already; the op then stays in integers
    JOIN = "join"  # as soon as one of them is: the others are quantized for it
    RESIDUAL = "residual"  # only the skip connection; the other input comes from the fused layer in float
    # (a skip connection to a product of matrices: where it is an integer already)
    RUN_TIME = "run time"  # each time it runs, as the kernel does it; at export its weight alone is rounded
    WEIGHT = "weight"  # never; its weight is stored narrow
    FLOAT = "float"  # never


class Output(StrEnum):
    """When the output of an op that reads integers is quantized."""

    ON_DEMAND = "on demand"  # where a consumer wants integers; the others read the float value
    ALWAYS = "always"  # also where no consumer wants it; all consumers read the rounded value
    REQUIRED = "required"  # as ALWAYS, and where it may not be quantized the op has no int8 kernel


@dataclass(frozen=True)
class OpRule:
    """What a target does with one kind of op.

    Attributes:
        inputs: when its activations are quantized.
        output: when its result is.
        pull: an op with JOIN also quantizes all its inputs where a consumer wants its output quantized; one with
            FOLLOW also follows inputs that other ops want as integers, where its own output is wanted so or is float.
        reason: why it stays float, or its weight is wider than the scheme's, for the report; "" where neither is so.
        weight: form of its weight, where that is not the scheme's; the first of several that the weight fits into, as
            groups do that divide the axis.
        rounded: what its kernel rounds its inputs to when it runs; None where it does not.
        matrices: its weight has to be a matrix: a stack of them stays float.
        depthwise: whether convolutions of each channel by itself are meant, too.
        wider: form of 8 bits that the weight of a single layer may have instead, where narrower ones are asked for;
            None where the target writes one form.
    """

    inputs: Inputs
    output: Output = Output.ON_DEMAND
    pull: bool = False
    reason: str = ""
    weight: tuple[TensorScheme, ...] = ()
    rounded: TensorScheme | None = None
    matrices: bool = False
    depthwise: bool = True
    wider: TensorScheme | None = None


INT8 = OpRule(Inputs.INT8)
INT8_IN_OUT = OpRule(Inputs.INT8, Output.ALWAYS)
INT8_REQUIRED = OpRule(Inputs.INT8, Output.REQUIRED)
FOLLOW = OpRule(Inputs.FOLLOW, Output.REQUIRED)
JOIN = OpRule(Inputs.JOIN, Output.REQUIRED)
RESIDUAL = OpRule(Inputs.RESIDUAL)
FLOAT = OpRule(Inputs.FLOAT)
AT_RUN_TIME = OpRule(Inputs.RUN_TIME, rounded=INT8_ROWS)
WEIGHT = OpRule(Inputs.WEIGHT)


@dataclass(frozen=True)
class FixedParams:
    """Scale and zero-point that a kernel has built in."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Scheme:
    """How a family of targets wants a model quantized.

    Attributes:
        name: for reports.
        activation, weight: how tensors become integers.
        rules: the rules, by kind of op (`op_kinds`); a kind without a rule stays float.
        fused_activations: activations that kernels apply before they round their output: q goes behind them.
        same_scale: kinds whose quantized inputs and outputs share one scale.
        always_same_scale: kinds, or names of operators, that the toolchain computes in integers wherever all that they
            read is integers, also where they are kept in float: what they read and write shares one scale then, too.
        fixed_outputs: kinds whose output has built-in parameters.
        bounded_outputs: kinds whose output is never larger than this: its range is the largest value that was seen,
            whatever the method, and the bound where nothing was.
        symmetric_second: kinds whose second operand has its zero-point in the middle, as kernels take it for a weight.
        residual_policy: `int8` or `float` for all additions of two activations; `auto` keeps the residual stream of
            a transformer (what reaches a layer norm) in float and lets those of CNNs be int8.
        bias: `float`, or `int32` with scale = input scale x weight scale.
        bias_correction: the shift of a layer's mean that rounding its weight causes is taken out of its bias.
        weights: `folded` (integer buffer and dequantize) or `unfolded` (float buffer, quantize and dequantize).
        float_outputs: what the graph returns is not rounded.
        run_time_outputs: kinds whose static kernels write integers, and that have another one for what is returned: an
            int8 weight, an input whose rows are rounded when it runs, a float result.
        min_weights: a layer with fewer weights than this stays float.
        output_share: a layer whose kernel has to write integers, and whose result is returned, is rounded all the same
            where it has more than this share of the multiply-accumulates; below it, float costs little and is exact.
        min_linear: a linear layer with fewer inputs or outputs than this stays float.
        float_head: a linear layer whose result is returned stays float below this share of the multiply-accumulates.
        between: type of what stays float in a statically quantised model, where the target's file says types; `by
            traffic` is float16 where that makes what layers write smaller, else float32.
        split_attention: a product that attention cuts into queries, keys and values is written as one for each.
        max_rank: an op that reads or writes a tensor of more axes stays float; 0 is no limit.
        reduce_range: weights use one bit less, so that sums of two uint8 x int8 products cannot exceed 16 bits.
        float16_scales: scales of activations and weights are values of float16, the type that the file holds them in.
        float16_weights: weights that are stored narrow are float16 before, and are divided by their scales in it.
        by_vendor: the toolchain's own quantizer writes what is placed, from the float graph: the placed graph tells it
            where, and is the simulated reference.
    """

    name: str
    activation: TensorScheme
    weight: TensorScheme
    rules: Mapping[str, OpRule]
    fused_activations: frozenset[str] = frozenset({"relu", "relu6"})
    same_scale: frozenset[str] = frozenset({"concat", "reshape", "split", "max_pool", "resize_nearest"})
    always_same_scale: frozenset[str] = frozenset()
    fixed_outputs: Mapping[str, FixedParams] = field(default_factory=dict)
    bounded_outputs: Mapping[str, float] = field(default_factory=dict)
    symmetric_second: frozenset[str] = frozenset()
    residual_policy: Literal["int8", "float", "auto"] = "auto"
    bias: Literal["float", "int32"] = "float"
    bias_correction: bool = True
    weights: Literal["folded", "unfolded"] = "folded"
    float_outputs: bool = True
    run_time_outputs: frozenset[str] = frozenset()
    output_share: float = 1.0
    min_linear: int = 0
    float_head: float = 0.0
    between: Literal["float32", "float16", "by traffic"] = "float32"
    split_attention: bool = False
    max_rank: int = 0
    reduce_range: bool = False
    float16_scales: bool = False
    float16_weights: bool = False
    min_weights: int = 0
    by_vendor: bool = False

    @property
    def quantizes(self) -> bool:
        """Whether it rounds anything; a scheme without rules leaves the whole model in float."""
        return bool(self.rules)

    @property
    def is_static(self) -> bool:
        """Whether it fixes ranges of activations, so that statistics are needed."""
        return any(rule.inputs not in _WEIGHTS_ALONE for rule in self.rules.values())

    def rule(self, kind: str) -> OpRule:
        """The rule of a kind; float with a reason where the scheme has none."""
        return self.rules.get(kind, FLOAT)

    @property
    def weight_limits(self) -> tuple[int, int]:
        """quant_min and quant_max of weights, with `reduce_range` applied (8 bit: -64 to 63)."""
        if not self.reduce_range:
            return self.weight.quant_min, self.weight.quant_max
        half = (self.weight.quant_max + 1) // 2
        return -half, half - 1


_WEIGHTS_ALONE = (Inputs.RUN_TIME, Inputs.WEIGHT, Inputs.FLOAT)


def with_rules(scheme: Scheme, **rules: OpRule) -> dict[str, OpRule]:
    """The rules of `scheme` with some replaced, for `dataclasses.replace`."""
    return {**scheme.rules, **rules}


PASSENGERS = dict.fromkeys(("reshape", "split", "max_pool", "resize_nearest"), FOLLOW)
_NO_RECURRENT = OpRule(Inputs.FLOAT, reason="recurrent layers have no static int8 kernel")
RECURRENT = dict.fromkeys(("lstm", "gru", "rnn"), _NO_RECURRENT)


def no_kernel(kind: str) -> OpRule:
    """The rule of a kind that stays float because the target's runtime has no integer kernel for it."""
    return OpRule(Inputs.FLOAT, reason=f"target has no int8 kernel for {kind}")


IN_FLOAT = Scheme(name="float", activation=FLOAT32, weight=FLOAT32, rules={}, bias_correction=False)
"""Of float precisions: nothing is placed."""


def weights_alone(name: str, weight: TensorScheme, **fields: Any) -> Scheme:
    """A scheme that rounds stored weights, which the toolchain's own quantizer writes from the float graph.

    Args:
        fields: further ones of `Scheme`, `rules` among them.
    """
    return Scheme(name, FLOAT32, weight, residual_policy="int8", bias_correction=False, by_vendor=True, **fields)
