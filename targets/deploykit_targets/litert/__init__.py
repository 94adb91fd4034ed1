"""Phones and other arm64 devices through LiteRT: one .tflite file, quantized by our own calibration."""

from __future__ import annotations

from deploykit_targets.litert.target import LiteRTTarget

__all__ = ["LiteRTTarget"]
