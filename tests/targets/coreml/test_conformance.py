"""The Core ML plugin against the shared contract."""

from __future__ import annotations

from deploykit.testing import TargetConformance


class TestCoreML(TargetConformance):
    target = "iphone-15"
