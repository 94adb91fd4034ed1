"""The TVM plugin against the shared contract, on this machine's CPU."""

from __future__ import annotations

from deploykit.testing import TargetConformance


class TestTvm(TargetConformance):
    target = "x86-cpu:tvm"
