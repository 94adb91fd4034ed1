"""The program's file and the packages of NVIDIA's compiler; imports nothing heavy, for listing targets reads it."""

from __future__ import annotations

from pathlib import Path

from deploykit.contract.optional import Requirement

PROGRAM = Path(__file__).with_name("build_engine.py")
"""The program that builds and runs engines on the device."""
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""What TensorRT for RTX compiles for."""
EXTRA = "tensorrt-compile"
BINDINGS = Requirement("tensorrt_rtx_bindings", "tensorrt_rtx_cu13_bindings")
LIBRARIES = Requirement("tensorrt_rtx_libs", "tensorrt_rtx_cu13_libs")
OF_THE_EXPORT = ("compute_capabilities", "block_size")
"""Options that a build cannot change."""
