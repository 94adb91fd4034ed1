"""The AOTInductor plugin against the shared contract, on the CPU."""

from __future__ import annotations

from deploykit.testing import TargetConformance, models


class TestAotInductorCpu(TargetConformance):
    target = "x86-cpu:aotinductor"
    model = staticmethod(models.mlp)
