"""The scheme of GPUs with explicit quantization: symmetric int8, fused residual additions."""

from __future__ import annotations

from dataclasses import replace

from deploykit.contract.formats import (
    FLOAT8,
    FLOAT8_CHANNELS,
    INT4_CHANNELS,
    INT8_CHANNELS,
    INT8_DIVIDED,
    INT8_SYMMETRIC,
    PerGroup,
)
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import (
    FOLLOW,
    IN_FLOAT,
    INT8,
    PASSENGERS,
    RECURRENT,
    RESIDUAL,
    FixedParams,
    Inputs,
    OpRule,
    Output,
    Scheme,
    weights_alone,
)
from deploykit_calibration.op_kinds import ACTIVATIONS

_SHARED = replace(FOLLOW, pull=True)
_AVERAGE = replace(_SHARED, output=Output.ON_DEMAND)
_DECONVOLUTION = OpRule(Inputs.FLOAT, reason="NVIDIA's compiler computes transposed convolutions in float")

# A classifier narrower than an int8 tile of the tensor cores is no faster in int8, and costs 4 dB on a digits ResNet.
# After NVIDIA's explicit-quantization guide: inputs only, symmetric, and of a residual addition only the skip
# connection, so that convolution, addition and activation fuse into one kernel. By the listings of NVIDIA's compiler
# (TensorRT for RTX 1.7; benchmarks/tensorrt_compiled.py): averages are steps of a chain and computed in float, so that
# rounding for their sake alone gains nothing; a value that other ops want as integers is written once, where what only
# moves or averages it reads those too; a float classifier is one layer, an int8 one two, as a chain scales its sums; an
# int8 product of matrices writes the type of the file, and an int8 convolution float32 whatever the file says. Scales
# are values of float16, so that the simulated graph has those of a file that holds float16 between its integers. What a
# softmax gives over n tokens is about 1 / n: steps of 1 / 127 cost an attention over 200 tokens 10 dB. So its range is
# the largest value seen, which is never clipped (those are the tokens that count).
TENSORRT = Scheme(
    name="tensorrt",
    activation=replace(INT8_SYMMETRIC, quant_min=-128),
    weight=INT8_CHANNELS,
    rules={
        **dict.fromkeys(PASSENGERS, _SHARED),
        **RECURRENT,
        "conv": INT8,
        "conv_transpose": _DECONVOLUTION,
        "linear": INT8,
        "matmul": INT8,
        "add": RESIDUAL,
        "concat": OpRule(Inputs.JOIN, Output.REQUIRED, pull=True),
        "avg_pool": _AVERAGE,
        "mean": _AVERAGE,
    },
    fused_activations=ACTIVATIONS,
    bounded_outputs={"softmax": 1.0},
    min_linear=16,
    float_head=0.02,
    between="by traffic",
    float16_scales=True,
    split_attention=True,
)
# For float8 E4M3 at the same places: rounding is relative, so that means of rounding errors say nothing.
TENSORRT_FP8 = replace(
    TENSORRT,
    name="tensorrt-fp8",
    activation=FLOAT8,
    weight=FLOAT8_CHANNELS,
    bounded_outputs={},
    fixed_outputs={"softmax": FixedParams(1 / FLOAT8.quant_max, 0)},
    bias_correction=False,
)


def explicit_scheme(precision: Precision) -> Scheme:
    """The scheme of a precision: int8 (`mixed` is int8 with float16 between), float8, or none."""
    if precision is Precision.FP8:
        return TENSORRT_FP8
    return TENSORRT if precision in (Precision.INT8, Precision.MIXED) else IN_FLOAT


def held_scheme(precision: Precision, block_size: int) -> Scheme:
    """Weights of matrix products in 4 bits in blocks, or 8 bits for each channel; scales and the rest are float16."""
    blocks = replace(INT4_CHANNELS, granularity=PerGroup(block_size))
    forms = (blocks, INT8_DIVIDED) if precision is Precision.INT4_WEIGHT_ONLY else (INT8_DIVIDED,)
    matrices = OpRule(Inputs.WEIGHT, weight=forms, matrices=True)
    others = OpRule(Inputs.FLOAT, reason="weight-only kernels are for matrix products: float16")
    return weights_alone(
        f"tensorrt-{precision}",
        forms[0],
        rules={
            **dict.fromkeys(("linear", "matmul"), matrices),
            **dict.fromkeys(("conv", "conv_transpose", "lstm", "gru", "rnn", "embedding"), others),
        },
        float16_scales=True,
        between="float16",
    )
