"""Which quantization scheme, lint rules and opset an NVIDIA device gets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.devices import Device
from deploykit_targets._schemes.gpu import explicit_scheme
from deploykit_targets._schemes.recurrent import with_reasons

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme

FIRST_STRONGLY_TYPED = 10
"""Major version of TensorRT from which precision lives in the graph; before, builder flags say it."""


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for a request: what is between q/dq nodes has a type of its own only where the graph says types."""
    scheme = with_reasons(explicit_scheme(request.precision), captured, request)
    untyped = replace(scheme, between="float32", split_attention=False, float16_scales=False)
    return scheme if is_strongly_typed(request.device) else untyped


def opset_of(device: Device) -> int:
    """The newest opset that the device's TensorRT is given."""
    return int(device.extra["opset"])


def is_strongly_typed(device: Device) -> bool:
    """Whether the device's TensorRT reads precision from the graph alone."""
    return int(str(device.extra["tensorrt"]).split(".", maxsplit=1)[0]) >= FIRST_STRONGLY_TYPED
