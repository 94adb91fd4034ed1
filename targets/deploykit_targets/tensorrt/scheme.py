"""Which quantization scheme, lint rules and opset an NVIDIA device gets."""

from __future__ import annotations

from deploykit.contract.devices import Device
from deploykit.contract.scheme import Scheme
from deploykit_targets._schemes.gpu import TENSORRT

FIRST_STRONGLY_TYPED = 10
"""Major version of TensorRT from which precision lives in the graph; before, builder flags say it."""


def scheme_of(device: Device) -> Scheme:
    """The scheme for `device`: the same for all, because silicon without int8 is not in the table."""
    return TENSORRT


def opset_of(device: Device) -> int:
    """The newest opset that the device's TensorRT is given."""
    return int(device.extra["opset"])


def is_strongly_typed(device: Device) -> bool:
    """Whether the device's TensorRT reads precision from the graph alone."""
    return int(str(device.extra["tensorrt"]).split(".", maxsplit=1)[0]) >= FIRST_STRONGLY_TYPED
