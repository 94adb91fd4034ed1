"""x86 CPUs through OpenVINO: the shared ONNX lowering, stored as OpenVINO IR."""

from __future__ import annotations

from deploykit_targets.openvino.target import OpenVinoTarget

__all__ = ["OpenVinoTarget"]
