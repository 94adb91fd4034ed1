"""The scheme of GPUs with explicit quantization: symmetric int8, fused residual additions."""

from __future__ import annotations

from dataclasses import replace

from deploykit.contract.formats import INT8_CHANNELS, INT8_SYMMETRIC
from deploykit.contract.scheme import INT8, PASSENGERS, RECURRENT, RESIDUAL, FixedParams, Inputs, OpRule, Output, Scheme
from deploykit_calibration.op_kinds import ACTIVATIONS

# A classifier narrower than an int8 tile of the tensor cores is no faster in int8, and costs 4 dB on a digits ResNet.
# After NVIDIA's explicit-quantization guide: inputs only, symmetric, and of a residual addition only the skip
# connection, so that convolution, addition and activation fuse into one kernel.
TENSORRT = Scheme(
    name="tensorrt",
    activation=replace(INT8_SYMMETRIC, quant_min=-128),
    weight=INT8_CHANNELS,
    rules={
        **PASSENGERS,
        **RECURRENT,
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
