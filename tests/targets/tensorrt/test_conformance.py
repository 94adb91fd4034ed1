"""The TensorRT plugin against the shared contract, on the board the project is known for and on a GPU with fp8."""

from __future__ import annotations

from deploykit.testing import TargetConformance


class TestJetsonOrin(TargetConformance):
    target = "jetson-orin"


class TestH200(TargetConformance):
    target = "h200:tensorrt"
