"""`NvidiaTarget`: what the plugins of TensorRT and of TensorRT for RTX share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploykit.contract.optional import Requirement
from deploykit_targets._on_device.target import BuiltOnDevice
from deploykit_targets._tensorrt.requirements import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path


EXPORT_REQUIRES = (Requirement("torch"), Requirement("onnx"), Requirement("onnxruntime"))


class NvidiaTarget(BuiltOnDevice):
    """Base of both toolchains: one build program."""

    program: ClassVar[str] = PROGRAM.name

    def own_program(self) -> Path:
        """See `BuiltOnDevice.own_program`."""
        return PROGRAM
