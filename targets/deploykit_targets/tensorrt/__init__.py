"""NVIDIA GPUs and Jetson boards through TensorRT."""

from __future__ import annotations

from deploykit_targets.tensorrt.target import TensorRtTarget

__all__ = ["TensorRtTarget"]
