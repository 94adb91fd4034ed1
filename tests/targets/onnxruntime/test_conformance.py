"""The ONNX Runtime plugin against the shared contract."""

from __future__ import annotations

from typing import ClassVar

from deploykit.testing import TargetConformance, models


class TestX86Cpu(TargetConformance):
    target = "x86-cpu"
    # These precisions compress matrix products; a CNN has one at its end only, a transformer is made of them.
    model_of: ClassVar = {
        "int8-dynamic": models.transformer_encoder,
        "int8-weight-only": models.transformer_encoder,
        "int4-weight-only": models.transformer_encoder,
    }
    stored_only = frozenset({"fp16"})


class TestX86CpuWithoutVnni(TargetConformance):
    target = "x86-cpu-avx2"
    model_of: ClassVar = TestX86Cpu.model_of
    stored_only = TestX86Cpu.stored_only
