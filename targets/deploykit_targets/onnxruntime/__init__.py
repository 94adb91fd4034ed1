"""x86 CPUs through ONNX Runtime: the embedded default of deploykit."""

from __future__ import annotations

from deploykit_targets.onnxruntime.target import OnnxRuntimeTarget

__all__ = ["OnnxRuntimeTarget"]
