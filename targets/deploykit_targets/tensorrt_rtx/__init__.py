"""NVIDIA RTX GPUs through TensorRT for RTX."""

from __future__ import annotations

from deploykit_targets.tensorrt_rtx.target import TensorRtRtxTarget

__all__ = ["TensorRtRtxTarget"]
