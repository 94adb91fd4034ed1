"""Which CPU features compiled code may use, in LLVM's spelling: checked on the device before a kernel runs.

Only those that LLVM uses for the kernels' vectors are listed; `cpu.c` asks the CPU for the same names. What every CPU
of the architecture has is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

CHECKED: Mapping[str, tuple[str, ...]] = {
    "x86_64": (
        *("avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"),
        *("avx512bf16", "avxvnni", "amx-tile", "amx-int8", "amx-bf16"),
    ),
    "aarch64": ("neon", "lse", "fullfp16", "rdm", "dotprod", "sve", "sve2", "i8mm", "bf16"),
}
"""By architecture, as `platform.machine()` and LLVM's triples name it."""


def architecture(target: Mapping[str, object]) -> str:
    """`x86_64` or `aarch64`, of a TVM target's triple."""
    return str(target["mtriple"]).partition("-")[0]


def needed_features(target: Mapping[str, object]) -> tuple[str, ...]:
    """What a CPU must have to run what TVM compiles for a target, in the order of `CHECKED`.

    Args:
        target: the fields of `tvm.target.Target`, with `mtriple`, `mcpu` and `mattr`.
    """
    import tvm

    known = tvm.get_global_func("target.llvm_get_cpu_features")(tvm.target.Target(dict(target)))
    switched_on = {str(name) for name in known}
    return tuple(name for name in CHECKED[architecture(target)] if name in switched_on)
