"""`QuantScheme`: how a family of targets wants a model quantized, as data.

A target's own `scheme.py` picks one of the constants at the end, or derives from it:

    SCHEME = replace(LITERT, rules=with_rules(LITERT, conv_transpose=INT8))

Placement reads the scheme and nothing else about the target; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from deploykit_calibration.op_kinds import ACTIVATIONS


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of an axis.

    Attributes:
        axis: the axis; None is the axis that holds the output channels of the op.
    """

    axis: int | None = None


@dataclass(frozen=True)
class TensorScheme:
    """How one kind of tensor becomes integers.

    Attributes:
        dtype: `uint8`, `int8` or `int16`.
        symmetric: zero-point fixed in the middle (0 where signed), else affine.
        quant_min, quant_max: integers used, inclusive; narrower than the dtype restricts the range.
        granularity: of scale and zero-point.
    """

    dtype: str
    symmetric: bool
    quant_min: int
    quant_max: int
    granularity: PerTensor | PerAxis = PerTensor()


class Inputs(StrEnum):
    """When the activation inputs of an op are quantized."""

    INT8 = "int8"  # always: the op asks for quantized inputs
    FOLLOW = "follow"  # where all of them are integers already; the op then stays in integers
    JOIN = "join"  # as soon as one of them is: the others are quantized for it
    RESIDUAL = "residual"  # only the skip connection; the other input comes from the fused layer in float
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
        pull: an op with JOIN also quantizes all its inputs where a consumer wants its output quantized.
        reason: why it stays float, for the report; "" where it does not.
    """

    inputs: Inputs
    output: Output = Output.ON_DEMAND
    pull: bool = False
    reason: str = ""


INT8 = OpRule(Inputs.INT8)
INT8_IN_OUT = OpRule(Inputs.INT8, Output.ALWAYS)
INT8_REQUIRED = OpRule(Inputs.INT8, Output.REQUIRED)
FOLLOW = OpRule(Inputs.FOLLOW, Output.REQUIRED)
JOIN = OpRule(Inputs.JOIN, Output.REQUIRED)
RESIDUAL = OpRule(Inputs.RESIDUAL)
FLOAT = OpRule(Inputs.FLOAT)


@dataclass(frozen=True)
class FixedParams:
    """Scale and zero-point that a kernel has built in."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantScheme:
    """How a family of targets wants a model quantized.

    Attributes:
        name: for reports.
        activation, weight: how tensors become integers.
        rules: by kind of op (`op_kinds`); a kind without a rule stays float.
        fused_activations: activations that kernels apply before they round their output: q goes behind them.
        same_scale: kinds whose quantized inputs and outputs share one scale.
        fixed_outputs: kinds whose output has built-in parameters.
        symmetric_second: kinds whose second operand has its zero-point in the middle, as kernels take it for a weight.
        residual_policy: `int8` or `float` for all additions of two activations; `auto` keeps the residual stream of
            a transformer (what reaches a layer norm) in float and lets those of CNNs be int8.
        bias: `float`, or `int32` with scale = input scale x weight scale.
        bias_correction: the shift of a layer's mean that rounding its weight causes is taken out of its bias.
        weights: `folded` (integer buffer and dequantize) or `unfolded` (float buffer, quantize and dequantize).
        float_outputs: what the graph returns is not rounded.
        output_share: a layer whose kernel has to write integers, and whose result is returned, is rounded all the same
            where it has more than this share of the multiply-accumulates; below it, float costs little and is exact.
        min_linear: a linear layer with fewer inputs or outputs than this stays float.
        max_rank: an op that reads or writes a tensor of more axes stays float; 0 is no limit.
        reduce_range: weights use one bit less, so that sums of two uint8 x int8 products cannot exceed 16 bits.
    """

    name: str
    activation: TensorScheme
    weight: TensorScheme
    rules: Mapping[str, OpRule]
    fused_activations: frozenset[str] = frozenset({"relu", "relu6"})
    same_scale: frozenset[str] = frozenset({"concat", "reshape", "split", "max_pool", "resize_nearest"})
    fixed_outputs: Mapping[str, FixedParams] = field(default_factory=dict)
    symmetric_second: frozenset[str] = frozenset()
    residual_policy: Literal["int8", "float", "auto"] = "auto"
    bias: Literal["float", "int32"] = "float"
    bias_correction: bool = True
    weights: Literal["folded", "unfolded"] = "folded"
    float_outputs: bool = True
    output_share: float = 1.0
    min_linear: int = 0
    max_rank: int = 0
    reduce_range: bool = False

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


def with_rules(scheme: QuantScheme, **rules: OpRule) -> dict[str, OpRule]:
    """The rules of `scheme` with some replaced, for `dataclasses.replace`."""
    return {**scheme.rules, **rules}


UINT8_AFFINE = TensorScheme("uint8", symmetric=False, quant_min=0, quant_max=255)
INT8_AFFINE = TensorScheme("int8", symmetric=False, quant_min=-128, quant_max=127)
INT8_SYMMETRIC = TensorScheme("int8", symmetric=True, quant_min=-127, quant_max=127)
INT8_CHANNELS = replace(INT8_SYMMETRIC, granularity=PerAxis())

_PASSENGERS = dict.fromkeys(("reshape", "split", "max_pool", "resize_nearest"), FOLLOW)
_NO_RECURRENT = OpRule(Inputs.FLOAT, reason="recurrent layers have no static int8 kernel")
_RECURRENT = dict.fromkeys(("lstm", "gru", "rnn"), _NO_RECURRENT)


def _no_kernel(kind: str) -> OpRule:
    return OpRule(Inputs.FLOAT, reason=f"target has no int8 kernel for {kind}")


# uint8 x int8 is the form of x86: VNNI multiplies unsigned by signed, and int8 x int8 is 2.8 times slower there.
# Linear and matmul read integers and write float (+1.4 dB at the same speed), and want their bias as int32: a
# float bias beside a dequantized product makes ONNX Runtime fall back to float. A convolution without a q
# directly behind it runs in float, so one that may not have it is left alone (`REQUIRED`); ConvInteger, which writes
# sums of 32 bits, is 5 times slower than the float convolution.
ONNX_X86 = QuantScheme(
    name="onnx-x86",
    activation=UINT8_AFFINE,
    weight=INT8_CHANNELS,
    rules={
        **_PASSENGERS,
        **_RECURRENT,
        "conv": INT8_REQUIRED,
        "conv_transpose": _no_kernel("conv_transpose"),
        "linear": INT8,
        "matmul": INT8,
        "add": JOIN,
        "mul": JOIN,
        "concat": JOIN,
        "avg_pool": FOLLOW,
        "mean": FOLLOW,
    },
    fixed_outputs={"softmax": FixedParams(1 / 256, 0)},
    bias="int32",
    output_share=0.02,
)

# Without VNNI, vpmaddubsw adds two uint8 x int8 products in 16 bits and saturates: 7-bit weights cannot reach that.
ONNX_X86_NO_VNNI = replace(ONNX_X86, name="onnx-x86-no-vnni", reduce_range=True)

# Reads the same file; its convolutions may write float.
OPENVINO = replace(ONNX_X86, name="openvino", rules=with_rules(ONNX_X86, conv=INT8_IN_OUT))

# PyTorch's compiler gives convolution and linear to oneDNN, which adds a float bias and may write float; products of
# two activations stay float there.
AOTINDUCTOR = replace(
    ONNX_X86,
    name="aotinductor",
    bias="float",
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT, matmul=_no_kernel("matmul")),
)
AOTINDUCTOR_NO_VNNI = replace(AOTINDUCTOR, name="aotinductor-no-vnni", reduce_range=True)

# A classifier narrower than an int8 tile of the tensor cores is no faster in int8, and costs 4 dB on a digits ResNet.
# After NVIDIA's explicit-quantization guide: inputs only, symmetric, and of a residual addition only the skip
# connection, so that convolution, addition and activation fuse into one kernel.
TENSORRT = QuantScheme(
    name="tensorrt",
    activation=replace(INT8_SYMMETRIC, quant_min=-128),
    weight=INT8_CHANNELS,
    rules={
        **_PASSENGERS,
        **_RECURRENT,
        "conv": INT8,
        "conv_transpose": INT8,
        "linear": INT8,
        "matmul": INT8,
        "add": RESIDUAL,
        "concat": OpRule(Inputs.JOIN, Output.REQUIRED, pull=True),
        "avg_pool": INT8,
        "mean": INT8,
    },
    fused_activations=ACTIVATIONS,
    fixed_outputs={"softmax": FixedParams(1 / 127, 0)},
    min_linear=16,
)
MIGRAPHX = replace(TENSORRT, name="migraphx")

# Every tensor that an int8 kernel writes is int8, or the kernel is not chosen; built-in parameters and equal
# scales are conditions of the file format.
LITERT = QuantScheme(
    name="litert",
    activation=INT8_AFFINE,
    weight=INT8_CHANNELS,
    rules={
        **_PASSENGERS,
        **_RECURRENT,
        **dict.fromkeys(("hardswish", "gelu", "sigmoid", "tanh", "leaky_relu", "relu", "relu6"), FOLLOW),
        "conv": INT8_REQUIRED,
        "conv_transpose": _no_kernel("conv_transpose"),
        "linear": INT8_REQUIRED,
        "matmul": INT8_REQUIRED,
        "add": JOIN,
        "sub": JOIN,
        "mul": JOIN,
        "concat": JOIN,
        "avg_pool": FOLLOW,
        "mean": FOLLOW,
        "resize_linear": FOLLOW,
    },
    same_scale=frozenset({"concat", "reshape", "split", "max_pool", "avg_pool", "resize_nearest", "resize_linear"}),
    fixed_outputs={
        "softmax": FixedParams(1 / 256, -128),
        "sigmoid": FixedParams(1 / 256, -128),
        "tanh": FixedParams(1 / 128, 0),
    },
    weights="unfolded",
    float_outputs=False,
)

# A tensor of an ML Program has at most five axes. coremltools folds reshape, transpose, reshape over six of them
# (windows of Swin) into what it has, where no quantize stands between.
COREML = QuantScheme(
    name="coreml",
    activation=INT8_AFFINE,
    weight=INT8_CHANNELS,
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT, conv_transpose=INT8_IN_OUT, linear=INT8_IN_OUT),
    fixed_outputs={"softmax": FixedParams(1 / 256, -128)},
    max_rank=5,
)

# The generated kernels multiply int8 by int8 (sdot), fold the zero-point into the bias and requantize at once.
TVM = QuantScheme(
    name="tvm",
    activation=INT8_AFFINE,
    weight=INT8_CHANNELS,
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT),
    fixed_outputs={"softmax": FixedParams(1 / 256, -128)},
    symmetric_second=frozenset({"matmul"}),
)
# x86 multiplies unsigned by signed bytes.
TVM_X86 = replace(TVM, name="tvm-x86", activation=UINT8_AFFINE, fixed_outputs={"softmax": FixedParams(1 / 256, 0)})
TVM_X86_NO_VNNI = replace(TVM_X86, name="tvm-x86-no-vnni", reduce_range=True)

SCHEMES: Mapping[str, QuantScheme] = {
    scheme.name: scheme
    for scheme in (
        *(ONNX_X86, ONNX_X86_NO_VNNI, OPENVINO, AOTINDUCTOR, AOTINDUCTOR_NO_VNNI),
        *(TENSORRT, MIGRAPHX, LITERT, COREML, TVM, TVM_X86, TVM_X86_NO_VNNI),
    )
}
"""The ready-made schemes by name."""
