"""The TensorRT for RTX plugin against the shared contract, on an Ada card and on Turing."""

from __future__ import annotations

from typing import Any, ClassVar

from deploykit.testing import TargetConformance, models

# NVIDIA's compiler, where it is installed, computes the narrow convolutions of the tiny model in float32.
IN_FLOAT = frozenset({"bf16"})
# Weight-only kernels are of matrix products.
HELD = dict.fromkeys(("int8-weight-only", "int4-weight-only"), models.mlp)


class TestRtx4090(TargetConformance):
    target = "rtx-4090"
    stored_only = IN_FLOAT
    model_of: ClassVar[dict[str, Any]] = HELD
    options: ClassVar[dict[str, Any] | None] = {"block_size": 32}


class TestRtx2080(TargetConformance):
    """Turing has no int8 convolution there: its int8 is for linear layers."""

    target = "rtx-2080"
    model = staticmethod(models.mlp)
