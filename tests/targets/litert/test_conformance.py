"""The LiteRT plugin against the shared contract."""

from __future__ import annotations

from deploykit.testing import TargetConformance


class TestLiteRT(TargetConformance):
    target = "android"
