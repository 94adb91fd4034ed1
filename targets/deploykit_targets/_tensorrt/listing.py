"""The builder's listing of engine layers, as it is logged, read into layers.

One line of the log is one engine layer: name, type (`correlation` is a convolution, `gemm` a product, `kgen` a chain of
pointwise steps in one kernel), types and shapes of inputs, constants and outputs, and the ONNX nodes that went into it.
A line that cannot be read is an error: a listing that is read in part would claim too much.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from deploykit.contract.errors import ConversionError
from deploykit_targets._tensorrt.build_engine import POINTWISE, describe_layer, narrowest

_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>\S+?), (?P<rest>.*)")
_SECTION = re.compile(r"(Inputs|Constants|Outputs): \[( \{ .*? \})?\]")
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\],.*?Datatype: (?P<type>\w+)")
_METADATA = re.compile(r"Metadata: (.*)$")
# What the names of chains are made of where values only change their type or their place.
_MOVES = re.compile(r"(?:Cast|Tran|Resh|Move|Copy|Slic|Conc|Repl|Pad|Unsq|Sque|Shuf)+")
_CHAIN = re.compile(r"^__myl_([A-Za-z]+)_myl")
_BITS = {"int8": 8, "fp8": 8, "uint8": 8, "bool": 8, "float16": 16, "bfloat16": 16, "int64": 64, "int4": 4, "fp4": 4}


@dataclass(frozen=True)
class Tensor:
    """A value that an engine layer reads or writes: its name, sizes (-1 where dynamic) and type."""

    name: str
    shape: tuple[int, ...]
    precision: str

    @property
    def size_bytes(self) -> int:
        """Bytes in memory; 0 where a size is not known."""
        return max(0, prod(self.shape)) * _BITS.get(self.precision, 32) // 8 if min(self.shape, default=1) >= 0 else 0


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name, type: as listed.
        nodes: names of the ONNX nodes that it was made of.
        precision: what it computes in, as `build_engine.describe_layer` says.
        role: `multiplies`, `moves` or `other`.
        inputs, constants, outputs: what it reads and writes.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    precision: str
    role: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def is_chain(self) -> bool:
        """Whether it is a fused chain of pointwise steps that holds no product."""
        return self.type == POINTWISE and self.role != "multiplies"

    @property
    def is_reformat(self) -> bool:
        """Whether it only changes types or places of values: a pass over memory that computes nothing."""
        chain = _CHAIN.match(self.name)
        return self.is_chain and chain is not None and _MOVES.fullmatch(chain[1]) is not None

    @property
    def moved_bytes(self) -> int:
        """Activations read and written, in bytes."""
        return sum(tensor.size_bytes for tensor in (*self.inputs, *self.outputs))

    def as_report(self) -> dict[str, Any]:
        """The layer in the form that a build program reports of a built engine."""
        return {
            "name": self.name,
            "type": self.type,
            "nodes": list(self.nodes),
            "precision": self.precision,
            "role": self.role,
            "device": "gpu",
        }


def parse_listing(text: str) -> tuple[EngineLayer, ...]:
    """Read a listing.

    Args:
        text: the builder's message that begins with `Layers:`.
    Raises:
        ConversionError: a line is not in the form that is known; carries the line.
    """
    return tuple(_layer(line) for line in _lines(text))


def _lines(text: str) -> Iterator[str]:
    """The lines of layers: up to the empty line behind which inputs and outputs are listed."""
    body = text.partition("Layers:\n")[2].partition("\n\n")[0]
    for line in body.splitlines():
        if line.strip():
            yield line.strip()


def _layer(line: str) -> EngineLayer:
    found = _LAYER.match(line)
    if found is None:
        raise ConversionError(
            f"a line of the compiler's listing cannot be read: {line[:200]}", hint="install the pinned tensorrt-compile"
        )
    sections = {name: tuple(_tensors(body)) for name, body in _SECTION.findall(found["rest"])}
    metadata = _METADATA.search(found["rest"])
    described = describe_layer(_as_inspected(found, sections, metadata[1] if metadata else ""))
    return EngineLayer(
        name=described["name"],
        type=described["type"],
        nodes=tuple(described["nodes"]),
        precision=described["precision"],
        role=described["role"],
        inputs=sections.get("Inputs", ()),
        constants=sections.get("Constants", ()),
        outputs=sections.get("Outputs", ()),
    )


def _as_inspected(found: re.Match[str], sections: Mapping[str, tuple[Tensor, ...]], metadata: str) -> dict[str, Any]:
    """The layer as the engine inspector's JSON has it."""
    tensors = {name: [{"Datatype": tensor.precision} for tensor in found] for name, found in sections.items()}
    return {"Name": found["name"], "LayerType": found["type"], "Metadata": metadata, **tensors}


def _tensors(text: str) -> Iterator[Tensor]:
    for found in _TENSOR.finditer(text):
        shape = tuple(int(size) for size in found["dims"].split(",") if size.strip())
        yield Tensor(found["name"], shape, narrowest([found["type"]]) or "unknown")
