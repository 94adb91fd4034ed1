"""The TensorRT plugin against the shared contract, on the board the project is known for and on a GPU with fp8."""

from __future__ import annotations

from deploykit.testing import TargetConformance

# NVIDIA's compiler, where it is installed, computes the narrow convolutions of the tiny model in float32.
IN_FLOAT = frozenset({"bf16"})


class TestJetsonOrin(TargetConformance):
    target = "jetson-orin"
    stored_only = IN_FLOAT


class TestH200(TargetConformance):
    target = "h200:tensorrt"
    stored_only = IN_FLOAT
