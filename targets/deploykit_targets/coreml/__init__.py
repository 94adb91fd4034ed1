"""Apple devices through Core ML: ML Programs, made and checked on any machine."""

from __future__ import annotations

from deploykit_targets.coreml.target import CoreMLTarget

__all__ = ["CoreMLTarget"]
