"""The TVM toolchain: kernels that deploykit generates, for Arm and x86 CPUs.

TVM is needed only where a model is compiled.
"""

from deploykit_targets.tvm.target import TvmTarget

__all__ = ["TvmTarget"]
