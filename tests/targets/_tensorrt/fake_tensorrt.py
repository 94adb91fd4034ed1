"""A recording fake of TensorRT's bindings and of the CUDA driver, for tests of the build program's call sequence.

It computes nothing. Every name that the build program touches is looked up in the recorded API surface of one version
(`api_surface/`), so that a name which that version lacks fails as it would on the device; every call is logged.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SURFACES = Path(__file__).parent / "api_surface"
INSPECTOR = {
    "Layers": [
        {
            "Name": "conv1 + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Int8 NC/32HW32"}],
            "Metadata": "[ONNX Layer: conv1]\u001e[ONNX Layer: relu]",
        },
        {"Name": "softmax", "LayerType": "SoftMax", "Inputs": [{"Name": "y", "Format/Datatype": "Row major Float"}]},
        {"Name": "{ForeignNode[conv2...conv3]}", "LayerType": "DLA", "Inputs": [{"Format/Datatype": "Int8 NC/32HW32"}]},
    ]
}


@cache
def surface(version: str) -> dict[str, Any]:
    """The recorded names of one version."""
    names: dict[str, Any] = json.loads((SURFACES / f"{version}.json").read_text())["names"]
    return names


class FakeMember:
    """An enumerator: an int with a name."""

    def __init__(self, kind: str, name: str, number: int) -> None:
        self.kind, self.name, self._number = kind, name, number

    def __int__(self) -> int:
        return self._number

    def __repr__(self) -> str:
        return f"{self.kind}.{self.name}"


class FakeObject:
    """An object of one of TensorRT's classes: logs calls and assignments, answers from a table."""

    def __init__(self, module: FakeTensorRT, kind: str) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        key = self._module.known(self._kind, name)
        answer = self._module.answers.get(key)
        if key in self._module.properties:
            return answer

        def call(*args: Any) -> Any:
            self._module.log.append((key, args))
            return answer(*args) if callable(answer) else answer

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._module.log.append((f"{self._module.known(self._kind, name)}=", (value,)))


class FakeTensorRT:
    """Stands in for the module `tensorrt` of one recorded version.

    Attributes:
        log: `(Class.method, arguments)` of every call, `(Class.attribute=, (value,))` of every assignment.
        answers: what a method returns (called if callable) or what a property holds.
    """

    def __init__(self, version: str, **answers: Any) -> None:
        self.names = surface(version)
        self.__version__ = version.removeprefix("rtx-")
        self.__name__ = "tensorrt_rtx_bindings" if version.startswith("rtx-") else "tensorrt"
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self.properties = {"OnnxParser.num_errors", "ICudaEngine.num_io_tensors"}
        self.answers: dict[str, Any] = {
            "Builder.create_network": lambda flags: FakeObject(self, "INetworkDefinition"),
            "Builder.create_builder_config": lambda: FakeObject(self, "IBuilderConfig"),
            "Builder.create_optimization_profile": lambda: FakeObject(self, "IOptimizationProfile"),
            "Builder.build_serialized_network": b"engine",
            "OnnxParser.parse_from_file": True,
            "IBuilderConfig.create_timing_cache": lambda data: FakeObject(self, "ITimingCache"),
            "IBuilderConfig.set_timing_cache": True,
            "ITimingCache.serialize": b"cache",
            "Runtime.deserialize_cuda_engine": lambda data: FakeObject(self, "ICudaEngine"),
            "ICudaEngine.num_io_tensors": 2,
            "ICudaEngine.get_tensor_name": lambda index: ("x", "y")[index],
            "ICudaEngine.get_tensor_mode": lambda name: (
                self.TensorIOMode.INPUT if name == "x" else self.TensorIOMode.OUTPUT
            ),
            "ICudaEngine.get_tensor_dtype": lambda name: self.DataType.FLOAT,
            "ICudaEngine.create_execution_context": lambda *_: FakeObject(self, "IExecutionContext"),
            "ICudaEngine.create_runtime_config": lambda: FakeObject(self, "IRuntimeConfig"),
            "IRuntimeConfig.create_runtime_cache": lambda: FakeObject(self, "IRuntimeCache"),
            "IRuntimeCache.serialize": b"kernels",
            "IRuntimeCache.deserialize": True,
            "ICudaEngine.create_engine_inspector": lambda: FakeObject(self, "EngineInspector"),
            "EngineInspector.get_engine_information": json.dumps(INSPECTOR),
            "IExecutionContext.set_input_shape": True,
            "IExecutionContext.get_tensor_shape": (1, 4),
            "IExecutionContext.execute_async_v3": True,
            **answers,
        }
        self._enumerators: dict[str, Any] = {}

    def known(self, kind: str, name: str) -> str:
        """`Class.name`, if this version has it."""
        if name not in self.names[kind]:
            raise AttributeError(f"TensorRT {self.__version__} has no {kind}.{name}")
        return f"{kind}.{name}"

    def calls(self, key: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of `Class.method`."""
        return [args for name, args in self.log if name == key]

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        if name in ("ILogger", "IProfiler"):
            return type(name, (), {member: member for member in self.names[name] if member.isupper()})
        if "value" in self.names[name] and "name" in self.names[name]:
            return self._enum(name)
        return lambda *args: FakeObject(self, name)

    def _enum(self, name: str) -> Any:
        if name not in self._enumerators:
            members = [member for member in self.names[name] if member.isupper()]
            numbered = {member: FakeMember(name, member, index) for index, member in enumerate(members)}
            self._enumerators[name] = type(name, (), numbered)
        return self._enumerators[name]


class FakeCuda:
    """Stands in for the CUDA driver: memory is a dictionary, time is a counter, outputs are zeros."""

    capability = (8, 7)
    device_name = "a fake Orin"
    driver_version = "12.6"
    stream = 7

    def __init__(self) -> None:
        self.allocated: dict[int, int] = {}
        self.copies: list[str] = []
        self._next = 1000
        self._clock = 0.0

    def allocate(self, size: int) -> int:
        self._next += 1
        self.allocated[self._next] = size
        return self._next

    def free(self, address: int) -> None:
        del self.allocated[address]

    def to_device(self, address: int, array: np.ndarray) -> None:
        assert self.allocated[address] >= array.nbytes
        self.copies.append("in")

    def to_host(self, array: np.ndarray, address: int) -> None:
        assert self.allocated[address] >= array.nbytes
        array[...] = 0
        self.copies.append("out")

    def synchronize(self) -> None:
        self.copies.append("wait")

    def event(self) -> int:
        return 0

    def record(self, event: int) -> None:
        self._clock += 1.0

    def milliseconds(self, start: int, end: int) -> float:
        return self._clock

    def free_bytes(self) -> int:
        return 1 << 30
