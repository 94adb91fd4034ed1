"""The instruction sets of x86 that kernels are run with, and those that stand for all of one width of registers."""

from deploykit_targets.tvm.processor import X86_ISAS

FEATURES = {**dict(X86_ISAS), "avx2_7bit": dict(X86_ISAS)["avx2"]}
"""Instruction set that multiplies bytes -> what a CPU that runs it has, as `deploykit.contract.host` calls it."""
TILES = {"amx_tile", "amx_int8"}
"""Of these, what is emulated where it is all that is missing."""
WIDTHS = ["avx512_vnni", "avx2"]
"""All others multiply float32, and do what is no product, as one of these: `test_widths_have_the_same_steps`."""
