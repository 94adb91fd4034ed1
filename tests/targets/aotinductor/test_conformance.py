"""The AOTInductor plugin against the shared contract, on the CPU."""

from __future__ import annotations

import shutil

import pytest

from deploykit.testing import TargetConformance, models

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: the compiler writes C++")


class TestAotInductorCpu(TargetConformance):
    target = "x86-cpu:aotinductor"
    model = staticmethod(models.mlp)
    # half a minute an export: C++ is compiled
    at_night = frozenset(
        {
            "test_every_precision_exports_and_passes_its_gate",
            "test_several_inputs_and_named_outputs",
            "test_caller_model_is_left_alone",
        }
    )
