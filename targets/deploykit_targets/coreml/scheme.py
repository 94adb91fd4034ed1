"""How Core ML wants a model quantized, and the oldest op set that has each precision."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.formats import (
    INT4_CHANNELS,
    INT8_AFFINE,
    INT8_CHANNELS,
    INT8_DIVIDED,
    PALETTE4,
    PALETTE6,
    PerGroup,
    TensorScheme,
)
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import IN_FLOAT, INT8_IN_OUT, WEIGHT, Scheme, weights_alone, with_rules
from deploykit_targets._schemes.recurrent import with_reasons
from deploykit_targets._schemes.x86 import ONNX_X86

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

# A tensor of an ML Program has at most five axes. coremltools folds reshape, transpose, reshape over six of them
# (windows of Swin) into what it has, where no quantize stands between.
COREML = Scheme(
    name="coreml",
    activation=INT8_AFFINE,
    weight=INT8_CHANNELS,
    rules=with_rules(ONNX_X86, conv=INT8_IN_OUT, conv_transpose=INT8_IN_OUT, linear=INT8_IN_OUT),
    bounded_outputs={"softmax": 1.0},
    max_rank=5,
    between="float16",
    float16_scales=True,
)


OP_SETS = ("iOS16", "iOS17", "iOS18")
"""Names of coremltools' deployment targets, oldest first. iOS15 takes no float16 inputs and no `quantize` ops."""

OS_FLOOR = {
    "iOS16": "iOS 16, macOS 13",
    "iOS17": "iOS 17, macOS 14",
    "iOS18": "iOS 18, macOS 15",
}
"""Oldest systems that run a program of each op set."""

_NEEDED = {Precision.INT8: "iOS17", Precision.INT4_WEIGHT_ONLY: "iOS18"}


def op_set_of(wanted: str, precision: Precision) -> str:
    """The op set to convert to: the wanted one, or a newer one where the precision needs it.

    `quantize` and `dequantize` came with iOS17; 4-bit integers and scales per block with iOS18.
    """
    return max(wanted, _NEEDED.get(precision, OP_SETS[0]), key=OP_SETS.index)


_WEIGHTED = ("linear", "conv", "conv_transpose", "matmul", "embedding", "lstm", "gru", "rnn", "add", "sub", "mul")
_PALETTES = {Precision.INT4_PALETTE: PALETTE4, Precision.INT6_PALETTE: PALETTE6}


def weight_only(precision: Precision, *, block_size: int, threshold: int) -> Scheme:
    """What coremltools' own optimiser writes: a palette or scales for each weight of `threshold` elements or more."""
    palette = _PALETTES.get(precision)
    forms: tuple[TensorScheme, ...] = (palette or INT8_DIVIDED,)
    if precision is Precision.INT4_WEIGHT_ONLY:
        forms = tuple(replace(INT4_CHANNELS, granularity=PerGroup(size)) for size in (block_size, 0))
    return weights_alone(
        f"coreml-{precision}",
        forms[0],
        rules=dict.fromkeys(_WEIGHTED, replace(WEIGHT, weight=forms)),
        min_weights=threshold,
        float16_weights=True,
    )


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for a request."""
    options = request.options
    if request.precision.is_weight_only:
        return weight_only(request.precision, block_size=options.block_size, threshold=options.weight_threshold)
    if request.precision is not Precision.INT8:
        return IN_FLOAT
    return with_reasons(COREML, captured, request)
