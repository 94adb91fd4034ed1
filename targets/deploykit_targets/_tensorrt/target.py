"""`NvidiaTarget`: what the plugins of TensorRT and of TensorRT for RTX share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploykit.contract.optional import Requirement
from deploykit_targets._on_device.target import BuiltOnDevice
from deploykit_targets._tensorrt.requirements import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request

EXPORT_REQUIRES = (Requirement("torch"), Requirement("onnx"), Requirement("onnxruntime"))


class NvidiaTarget(BuiltOnDevice):
    """Base of both toolchains: one build program, and one form of recurrent layers."""

    program: ClassVar[str] = PROGRAM.name

    def own_program(self) -> Path:
        """See `BuiltOnDevice.own_program`."""
        return PROGRAM

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """See `Target.adapt`: recurrent layers are written out where they are quantized."""
        from deploykit_targets._tensorrt.adapt import adapt

        return adapt(captured, request)
