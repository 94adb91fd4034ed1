"""A .tflite file as Python objects: reading, writing, and the names of operators and types.

The format's own generated classes do the work; what is here is what they leave open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.contract.errors import ArtifactError
from deploykit.contract.optional import require

_IDENTIFIER = b"TFL3"


def schema() -> Any:
    """The generated classes of the file format.

    Raises:
        MissingDependencyError: LiteRT is not installed.
    """
    return require("ai_edge_litert.schema_py_generated", extra="litert", purpose="export to litert")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its name, type such as `INT8`, shape, and whether the file holds its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant: bool


@dataclass(frozen=True)
class Operator:
    """One operator of the file, such as `CONV_2D`; an input is None where it is left out."""

    kind: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]


def read(path: Path) -> Any:
    """Read a file as a `ModelT`.

    Raises:
        ArtifactError: it is not a .tflite file.
    """
    data = path.read_bytes()
    if data[4:8] != _IDENTIFIER:
        raise ArtifactError(f"{path.name} is not a .tflite file", hint="export the model again")
    model = schema().ModelT.InitFromPackedBuf(bytearray(data), 0)
    for buffer in model.buffers:
        _bring_inside(buffer, data)
    return model


def _bring_inside(buffer: Any, data: bytes) -> None:
    """Large values may lie behind the flatbuffer proper, at an offset in the file; packing would lose them."""
    if buffer.offset > 1:
        buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0


def write(model: Any, path: Path) -> None:
    """Write a `ModelT`; equal models give equal bytes."""
    flatbuffers = require("flatbuffers", extra="litert", purpose="export to litert")
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))


def operators(model: Any) -> Iterator[Operator]:
    """The operators of the main graph, in order of execution."""
    graph = model.subgraphs[0]
    tensors = [_tensor(model, tensor) for tensor in graph.tensors]
    kinds = _names("BuiltinOperator")
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs = tuple(tensors[i] if i >= 0 else None for i in _list(op.inputs))
        yield Operator(kind, inputs, tuple(tensors[i] for i in _list(op.outputs)))


def constant(model: Any, index: int) -> np.ndarray:
    """The float32 values of a tensor that the file holds; empty where it holds none."""
    return np.frombuffer(bytes(_list(model.buffers[model.subgraphs[0].tensors[index].buffer].data)), np.float32)


def type_name(tensor: Any) -> str:
    """Type of a `TensorT`, such as `FLOAT32`."""
    return _names("TensorType")[tensor.type]


def _tensor(model: Any, tensor: Any) -> Tensor:
    constant = len(_list(model.buffers[tensor.buffer].data)) > 0
    return Tensor(text(tensor.name), type_name(tensor), tuple(int(size) for size in _list(tensor.shape)), constant)


def text(name: Any) -> str:
    """A name of the file, which its classes give as bytes."""
    return name.decode() if isinstance(name, bytes) else str(name or "")


def _list(values: Any) -> Any:
    return () if values is None else values


@cache
def _names(enumeration: str) -> dict[int, str]:
    values = vars(getattr(schema(), enumeration))
    return {value: name for name, value in values.items() if isinstance(value, int)}
