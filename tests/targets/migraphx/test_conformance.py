"""The MIGraphX plugin against the shared contract."""

from __future__ import annotations

from deploykit.testing import TargetConformance


class TestMi300x(TargetConformance):
    target = "amd-mi300x"
