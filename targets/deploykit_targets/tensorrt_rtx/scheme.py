"""Which quantization scheme an RTX GPU gets, and for which others an engine can be compiled along with it.

What Turing lacks is said by NVIDIA's compiler (1.7.1.116), asked for sm_75: it refuses every float32 product ("FP32
GEMM is not supported"), computes convolutions that are placed in int8 in float16, and products of linear layers in
int8 only where what surrounds them is float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import FOLLOW, Inputs, OpRule, Scheme, with_rules
from deploykit_targets._schemes.gpu import TENSORRT, explicit_scheme, held_scheme
from deploykit_targets._schemes.recurrent import with_reasons

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

_TURING = "sm_75"
OPSET = 19
"""The newest that the file is written at: what TensorRT is given, so that one file serves both."""

_NO_INT8 = OpRule(
    Inputs.FLOAT,
    reason="TensorRT for RTX has no int8 convolution for Turing; fp16 there, or through TensorRT (rtx-2080:tensorrt)",
)
SCHEME = replace(TENSORRT, name="tensorrt-rtx")
SCHEME_TURING = replace(
    TENSORRT,
    name="tensorrt-rtx-turing",
    # What stood in int8 between convolutions would be a rounding that no kernel is faster for.
    rules=with_rules(
        TENSORRT,
        conv=_NO_INT8,
        conv_transpose=_NO_INT8,
        matmul=OpRule(Inputs.FLOAT, reason="TensorRT for RTX has no int8 product of activations for Turing: float16"),
        add=OpRule(Inputs.FLOAT),
        avg_pool=FOLLOW,
        mean=FOLLOW,
        concat=FOLLOW,
    ),
    between="float16",
)


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for a request."""
    if request.precision.is_weight_only:
        return held_scheme(request.precision, request.options.block_size)
    scheme = explicit_scheme(request.precision)
    if request.precision in (Precision.INT8, Precision.MIXED):
        scheme = SCHEME_TURING if request.device.arch == _TURING else SCHEME
    return with_reasons(scheme, captured, request)


def architectures_of(device: Device, others: Sequence[str]) -> tuple[str, ...]:
    """The architectures that one engine is compiled for: the device's own, and others in order."""
    return tuple(sorted({device.arch, *others}, key=lambda arch: int(arch.removeprefix("sm_"))))
