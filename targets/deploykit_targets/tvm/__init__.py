"""The TVM toolchain: kernels that deploykit generates, for Arm and x86 CPUs.

Nothing is imported here: TVM is needed only where a model is compiled.
"""
