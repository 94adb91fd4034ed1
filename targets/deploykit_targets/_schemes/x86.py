"""The scheme of x86 processors: unsigned activations times signed weights."""

from __future__ import annotations

from dataclasses import replace

from deploykit.contract.formats import INT8_CHANNELS, UINT8_AFFINE
from deploykit.contract.scheme import (
    FOLLOW,
    INT8,
    INT8_REQUIRED,
    JOIN,
    PASSENGERS,
    RECURRENT,
    Scheme,
    no_kernel,
)

# uint8 x int8 is the form of x86: VNNI multiplies unsigned by signed, and int8 x int8 is 2.8 times slower there.
# Linear and matmul read integers and write float (+1.4 dB at the same speed), and want their bias as int32: a
# float bias beside a dequantized product makes ONNX Runtime fall back to float. A convolution without a q
# directly behind it runs in float, so one that may not have it is left alone (`REQUIRED`); ConvInteger, which writes
# sums of 32 bits, is 5 times slower than the float convolution.
ONNX_X86 = Scheme(
    name="onnx-x86",
    activation=UINT8_AFFINE,
    weight=INT8_CHANNELS,
    rules={
        **PASSENGERS,
        **RECURRENT,
        "conv": INT8_REQUIRED,
        "conv_transpose": no_kernel("conv_transpose"),
        "linear": INT8,
        "matmul": INT8,
        "add": JOIN,
        "mul": JOIN,
        "concat": JOIN,
        "avg_pool": FOLLOW,
        "mean": FOLLOW,
    },
    bounded_outputs={"softmax": 1.0},  # by the values seen, as on GPUs: 1 / 256 cost ViTs of 197 tokens 6 dB
    bias="int32",
    output_share=0.02,
)

# Without VNNI, vpmaddubsw adds two uint8 x int8 products in 16 bits and saturates: 7-bit weights cannot reach that.
ONNX_X86_NO_VNNI = replace(ONNX_X86, name="onnx-x86-no-vnni", reduce_range=True)
