"""TFLite metadata: what apps and Android Studio read of a file to know its inputs and outputs.

It is a flatbuffer of its own (file identifier M001), kept in the file's buffer named TFLITE_METADATA. The numbers
below are the fields' places in its public schema, `metadata_schema.fbs`. Only what is known is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.contract.optional import require
from deploykit_targets.litert import flatbuffer

BUFFER_NAME = b"TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"  # of the readers that understand every field written here
# table -> its number of fields, and the places of those that are written
_MODEL = (8, {"name": 0, "description": 1, "version": 2, "subgraphs": 3, "min_parser_version": 7})
_SUBGRAPH = (10, {"name": 0, "inputs": 2, "outputs": 3})
_TENSOR = (7, {"name": 0, "description": 1, "dimension_names": 2, "content": 3, "process_units": 4, "stats": 5})
_CONTENT = (3, {"properties_type": 0, "properties": 1})
_FEATURES, _IMAGE = 1, 2  # of the union ContentProperties
_IMAGE_PROPERTIES = (2, {"color_space": 0, "size": 1})
_RGB, _GRAY = 1, 2
_IMAGE_SIZE = (2, {"width": 0, "height": 1})
_PROCESS_UNIT = (2, {"options_type": 0, "options": 1})
_NORMALIZATION = 1  # of the union ProcessUnitOptions
_NORMALIZATION_OPTIONS = (2, {"mean": 0, "std": 1})
_STATS = (2, {"max": 0, "min": 1})

Table = tuple[int, Mapping[str, int]]


@dataclass(frozen=True)
class Described:
    """One input or output, for people and for code generators.

    Attributes:
        name: in the file.
        description: for people.
        layout: the layout of its axes, such as `NHWC`; "" where unknown.
        shape: in the file.
        image: whether it is an image.
        mean, std: what the app subtracts from, and divides, each channel's values by; empty where unknown.
        minimum, maximum: values that calibration saw; empty where unknown.
    """

    name: str
    description: str
    layout: str = ""
    shape: tuple[int, ...] = ()
    image: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()


def attach(model: Any, name: str, description: str, inputs: Sequence[Described], outputs: Sequence[Described]) -> None:
    """Put metadata into a `ModelT`, in place of what it has."""
    schema = flatbuffer.schema()
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(encoded(name, description, inputs, outputs))
    model.buffers.append(buffer)
    entry.name, entry.buffer = BUFFER_NAME, len(model.buffers) - 1
    others = [other for other in model.metadata or [] if flatbuffer.text(other.name).encode() != BUFFER_NAME]
    model.metadata = [*others, entry]


def encoded(name: str, description: str, inputs: Sequence[Described], outputs: Sequence[Described]) -> bytes:
    """The metadata as bytes."""
    write = _Writer()
    ends = {"inputs": inputs, "outputs": outputs}
    tables = {end: write.vector([_tensor(write, one) for one in tensors]) for end, tensors in ends.items()}
    subgraph = write.table(_SUBGRAPH, {"name": write.string("main"), **tables})
    fields = {
        "name": write.string(name),
        "description": write.string(description),
        "subgraphs": write.vector([subgraph]),
        "min_parser_version": write.string(_PARSER_VERSION),
    }
    return write.finished(write.table(_MODEL, fields))


def _tensor(write: _Writer, one: Described) -> int:
    fields = {"name": write.string(one.name), "description": write.string(one.description)}
    if one.layout:
        fields["dimension_names"] = write.vector([write.string(_AXES[axis]) for axis in one.layout])
    fields["content"] = _content(write, one)
    if one.mean:
        options = write.table(_NORMALIZATION_OPTIONS, {"mean": write.floats(one.mean), "std": write.floats(one.std)})
        unit = write.table(_PROCESS_UNIT, {"options": options}, {"options_type": _NORMALIZATION})
        fields["process_units"] = write.vector([unit])
    if one.minimum:
        fields["stats"] = write.table(_STATS, {"max": write.floats(one.maximum), "min": write.floats(one.minimum)})
    return write.table(_TENSOR, fields)


_AXES = {"N": "batch", "C": "channels", "H": "height", "W": "width"}


def _content(write: _Writer, one: Described) -> int:
    sizes = dict(zip(one.layout, one.shape, strict=False))
    if not one.image:
        return write.table(_CONTENT, {"properties": write.table((0, {}), {})}, {"properties_type": _FEATURES})
    size = write.numbers(_IMAGE_SIZE, {"width": sizes["W"], "height": sizes["H"]})
    space = _GRAY if sizes["C"] == 1 else _RGB
    properties = write.table(_IMAGE_PROPERTIES, {"size": size}, {"color_space": space})
    return write.table(_CONTENT, {"properties": properties}, {"properties_type": _IMAGE})


class _Writer:
    """The few forms of a flatbuffer that are needed; parts are written before what refers to them."""

    def __init__(self) -> None:
        self._builder: Any = require("flatbuffers", extra="litert", purpose="export to litert").Builder(1024)

    def string(self, text: str) -> int:
        """Offset of a string."""
        return int(self._builder.CreateString(text))

    def vector(self, offsets: Sequence[int]) -> int:
        """Offset of a vector of tables or strings."""
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return int(self._builder.EndVector())

    def floats(self, values: Sequence[float]) -> int:
        """Offset of a vector of float32."""
        self._builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self._builder.PrependFloat32(value)
        return int(self._builder.EndVector())

    def table(self, table: Table, offsets: Mapping[str, int], small: Mapping[str, int] | None = None) -> int:
        """Offset of a table with references and with numbers of one byte."""
        count, places = table
        self._builder.StartObject(count)
        for name, offset in offsets.items():
            self._builder.PrependUOffsetTRelativeSlot(places[name], offset, 0)
        for name, value in (small or {}).items():
            self._builder.PrependInt8Slot(places[name], value, 0)
        return int(self._builder.EndObject())

    def numbers(self, table: Table, values: Mapping[str, int]) -> int:
        """Offset of a table of unsigned numbers of four bytes."""
        count, places = table
        self._builder.StartObject(count)
        for name, value in values.items():
            self._builder.PrependUint32Slot(places[name], value, 0)
        return int(self._builder.EndObject())

    def finished(self, root: int) -> bytes:
        """All of it."""
        self._builder.Finish(root, file_identifier=_IDENTIFIER)
        return bytes(self._builder.Output())
