"""`ModelConfig`: the part of Triton's model configuration that is written here, as values and as protobuf text.

Names are those of `inference.ModelConfig` (model_config.proto). Nothing is checked here; `rules.py` does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from deploykit.contract.printable import printable


class Kind(StrEnum):
    """Where instances run."""

    CPU = "KIND_CPU"
    GPU = "KIND_GPU"


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: in the model.
        data_type: such as `TYPE_FP32`.
        dims: without the batch axis where `max_batch_size` is above 0; -1 for an axis of any size.
        reshape: what the model wants in the place of `dims`; None for `dims` itself.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class InstanceGroup:
    """Instances of the model; `gpus` empty leaves them to Triton."""

    count: int
    kind: Kind
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class DynamicBatching:
    """Requests share runs.

    Attributes:
        preferred_batch_size: rows that a batch does not wait beyond.
        max_queue_delay_microseconds: how long a row waits for others.
        max_queue_size: requests that may wait; 0 for any number.
        default_timeout_microseconds: of a request in the queue, refused behind it; 0 for none.
    """

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 0
    default_timeout_microseconds: int = 0


@dataclass(frozen=True)
class WarmupInput:
    """Data of one input: a file in the folder `warmup` of the model."""

    data_type: str
    dims: tuple[int, ...]
    input_data_file: str


@dataclass(frozen=True)
class Warmup:
    """A request that is run before the model is ready."""

    name: str
    inputs: Mapping[str, WarmupInput]
    batch_size: int = 1


@dataclass(frozen=True)
class ModelConfig:
    """A model of a repository; see Triton's model configuration for what each field means."""

    name: str
    backend: str
    platform: str
    max_batch_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    instance_groups: tuple[InstanceGroup, ...]
    default_model_filename: str
    dynamic_batching: DynamicBatching | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    warmups: tuple[Warmup, ...] = ()
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The content of `config.pbtxt`; notes are comments on top."""
        return "\n".join([*(f"# {_one_line(note)}" for note in self.notes), *self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        yield f"name: {_text(self.name)}"
        yield f"backend: {_text(self.backend)}"
        if self.platform:
            yield f"platform: {_text(self.platform)}"
        yield f"max_batch_size: {self.max_batch_size}"
        yield f"default_model_filename: {_text(self.default_model_filename)}"
        yield "version_policy { latest { num_versions: 1 } }"
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                yield from _block(kind, _tensor(tensor))
        for group in self.instance_groups:
            gpus = [f"gpus: {list(group.gpus)}"] if group.gpus else []
            yield from _block("instance_group", [f"count: {group.count}", f"kind: {group.kind}", *gpus])
        if self.dynamic_batching is not None:
            yield from _block("dynamic_batching", _batching(self.dynamic_batching))
        for key, value in self.parameters.items():
            yield f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for warmup in self.warmups:
            yield from _block("model_warmup", _warmup(warmup))


def _one_line(text: str) -> str:
    """Words of a manifest as a comment, which must not end before they do."""
    return printable(" ".join(text.split()))


def _block(name: str, lines: list[str]) -> Iterator[str]:
    yield f"{name} {{"
    yield from (f"  {line}" for line in lines)
    yield "}"


def _tensor(tensor: Tensor) -> list[str]:
    lines = [f"name: {_text(tensor.name)}", f"data_type: {tensor.data_type}", f"dims: {list(tensor.dims)}"]
    if tensor.reshape is not None:
        lines.append(f"reshape {{ shape: {list(tensor.reshape)} }}")
    return lines


def _batching(batching: DynamicBatching) -> list[str]:
    lines = []
    if batching.preferred_batch_size:
        lines.append(f"preferred_batch_size: {list(batching.preferred_batch_size)}")
    lines.append(f"max_queue_delay_microseconds: {batching.max_queue_delay_microseconds}")
    policy = []
    if batching.max_queue_size:
        policy.append(f"max_queue_size: {batching.max_queue_size}")
    if batching.default_timeout_microseconds:
        policy.append(f"default_timeout_microseconds: {batching.default_timeout_microseconds}")
        policy.append("timeout_action: REJECT")
        policy.append("allow_timeout_override: true")
    return [*lines, *(_block("default_queue_policy", policy) if policy else ())]


def _warmup(warmup: Warmup) -> list[str]:
    lines = [f"name: {_text(warmup.name)}", f"batch_size: {warmup.batch_size}"]
    for name, given in warmup.inputs.items():
        value = f"data_type: {given.data_type} dims: {list(given.dims)} input_data_file: {_text(given.input_data_file)}"
        lines.append(f"inputs {{ key: {_text(name)} value {{ {value} }} }}")
    return lines


def _text(value: str) -> str:
    """A string of protobuf's text format; JSON's escapes of ASCII are among its own, bytes beyond are octal."""
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(char if ord(char) < 0x7F else "".join(f"\\{byte:03o}" for byte in char.encode()) for char in quoted)
