"""Which quantization scheme an x86 device gets from ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.formats import (
    INT8_CHANNELS,
    INT8_DIVIDED,
    INT8_SYMMETRIC,
    UINT8_AFFINE,
    PerGroup,
    TensorScheme,
)
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import IN_FLOAT, WEIGHT, Inputs, OpRule, Scheme, weights_alone, with_rules
from deploykit_targets._onnx.vnni import has_wide_weights
from deploykit_targets._schemes.recurrent import with_reasons
from deploykit_targets._schemes.x86 import ONNX_X86, ONNX_X86_NO_VNNI

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

_BITS = {Precision.INT8_WEIGHT_ONLY: 8, Precision.INT4_WEIGHT_ONLY: 4}
_RECURRENT = OpRule(Inputs.FLOAT, reason="recurrent kernels take float weights")
_STATIC_ONLY = OpRule(Inputs.FLOAT, reason="its dynamic kernel is no faster than float, or does not exist")
_DYNAMIC = OpRule(Inputs.RUN_TIME, rounded=UINT8_AFFINE, matrices=True)
_DYNAMIC_LSTM = replace(_DYNAMIC, matrices=False)

# DynamicQuantizeLinear finds one scale for a tensor. Convolutions stay float, whose dynamic kernels are slower.
DYNAMIC = weights_alone(
    "onnxruntime-dynamic",
    INT8_CHANNELS,
    rules={
        **dict.fromkeys(("linear", "matmul"), _DYNAMIC),
        **dict.fromkeys(("conv", "conv_transpose", "gru", "rnn"), _STATIC_ONLY),
        "lstm": _DYNAMIC_LSTM,
        "embedding": replace(WEIGHT, weight=(UINT8_AFFINE,)),
    },
)

# The only int8 LSTM of ONNX Runtime rounds what each step reads when it runs. Written out as static products, one took
# 3 times as long at 128 units, and as long as in float at 512, where this one takes a third.
NATIVE = frozenset({"lstm"})
STATIC = replace(ONNX_X86, rules=with_rules(ONNX_X86, lstm=_DYNAMIC_LSTM))
STATIC_NO_VNNI = replace(ONNX_X86_NO_VNNI, rules=STATIC.rules)


def weight_only(bits: int, block_size: int) -> Scheme:
    """Products as MatMulNBits, which rounds blocks of its input to 8 bits when it runs; other weights in 8 bits."""
    half = 1 << (bits - 1)
    blocks = TensorScheme(
        f"int{bits}", quant_min=-half, quant_max=half - 1, granularity=PerGroup(block_size), furthest=True
    )
    product = OpRule(
        Inputs.WEIGHT,
        weight=(blocks,),
        rounded=replace(INT8_SYMMETRIC, granularity=PerGroup(block_size)),
        matrices=True,
        wider=replace(blocks, dtype="int8", quant_min=-128, quant_max=127) if bits < 8 else None,
    )
    wider = f"blocks of {bits} bits are for matrix products: it holds 8 bits"
    table = replace(WEIGHT, weight=(INT8_DIVIDED,), reason=wider)
    return weights_alone(
        f"onnxruntime-int{bits}-weights",
        blocks,
        rules={
            **dict.fromkeys(("lstm", "gru", "rnn"), _RECURRENT),
            **dict.fromkeys(("linear", "matmul"), product),
            **dict.fromkeys(("conv", "embedding"), table),
            "conv_transpose": OpRule(Inputs.FLOAT, reason="no compressed form is written for it"),
        },
    )


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for a request; weights of 7 bits cannot saturate 16-bit sums on any CPU."""
    wide = has_wide_weights(request.device)
    if request.precision is Precision.INT8_DYNAMIC:
        return replace(DYNAMIC, reduce_range=not wide)
    if request.precision in _BITS:
        return weight_only(_BITS[request.precision], request.options.block_size)
    if request.precision is not Precision.INT8:
        return IN_FLOAT
    return with_reasons(STATIC if wide else STATIC_NO_VNNI, captured, request, native=NATIVE)
