"""The AOTInductor plugin against the shared contract, on the CPU."""

from __future__ import annotations

import shutil

import pytest

from deploykit.testing import TargetConformance, models

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: the compiler writes C++")


class TestAotInductorCpu(TargetConformance):
    target = "x86-cpu:aotinductor"
    model = staticmethod(models.mlp)
