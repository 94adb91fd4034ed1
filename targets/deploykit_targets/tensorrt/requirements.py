"""The packages of NVIDIA's compiler that needs no GPU; imports nothing heavy, for listing targets reads it."""

from __future__ import annotations

from deploykit._optional import Requirement

EXTRA = "tensorrt-compile"
BINDINGS = Requirement("tensorrt_rtx_bindings", "tensorrt_rtx_cu13_bindings")
LIBRARIES = Requirement("tensorrt_rtx_libs", "tensorrt_rtx_cu13_libs")
