"""CPUs and NVIDIA GPUs through PyTorch's AOTInductor."""

from __future__ import annotations

from deploykit_targets.aotinductor.target import AotInductorTarget

__all__ = ["AotInductorTarget"]
