"""Which quantization scheme and opset an AMD device gets: those of MIGraphX's ONNX parser and q/dq matcher."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision
from deploykit_targets._schemes.gpu import explicit_scheme
from deploykit_targets._schemes.recurrent import with_reasons

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme


OPSET = 19
"""The newest that MIGraphX's documentation names."""

FP8_NOTES = {
    "fnuz": "fp8: the file holds OCP E4M3 (FN, largest 448); {arch} computes in E4M3FNUZ (largest 240), to which"
    " MIGraphX 2.12 (ROCm 6.4) or later converts: same bits at half the value and doubled scales, so that nothing"
    " overflows",
    "fn": "fp8: the file holds OCP E4M3 (FN, largest 448), which {arch} computes in",
}
"""By `fp8` of the device table."""


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for a request: the same for all devices, because the matcher is.

    What is written so for NVIDIA's compiler alone is left out.
    """
    scheme = replace(explicit_scheme(request.precision), name="migraphx", between="float32", split_attention=False)
    return with_reasons(scheme, captured, request)


def notes_of(precision: Precision, device: Device) -> tuple[str, ...]:
    """What must be said of a file in `precision` on `device`: which fp8 it holds and which one is computed in.

    ONNX has OCP E4M3 (FN, largest value 448). Silicon with E4M3FNUZ (largest 240) computes the same bits at half the
    value, because its exponent bias is one more. MIGraphX's pass reads the bits so and doubles the scales before each
    convolution and matrix product, which is exact: 448 at scale s becomes 224 at scale 2 s, so that scales computed
    for 448 neither overflow nor lose a bit. Only -0 and NaN have other bits, and are mapped. Rule and arithmetic:
    ROCm/AMDMIGraphX src/fp8_ocp_to_fnuz.cpp and src/targets/gpu/target.cpp at f729a52fafa2.
    """
    return (FP8_NOTES[device.extra["fp8"]].format(arch=device.arch),) if precision is Precision.FP8 else ()
