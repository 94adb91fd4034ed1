"""The OpenVINO plugin against the shared contract."""

from __future__ import annotations

from deploykit.testing import TargetConformance


class TestOpenVino(TargetConformance):
    target = "x86-cpu:openvino"
    stored_only = frozenset({"fp16", "bf16"})
