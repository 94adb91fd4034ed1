"""What Triton refuses, ignores or computes otherwise although its protobuf accepts it, said before it is deployed.

After `ValidateModelConfig`, `ValidateInstanceGroup`, `ValidateModelInput` of Triton's core (src/model_config_utils.cc),
its documentation of the model configuration, and the pages of the three back ends. Where Triton takes a contradiction
without a word (dynamic batching of a model without batches), the rule is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deploykit_serving.triton.config import DynamicBatching, InstanceGroup, Kind, ModelConfig, Tensor, Warmup


@dataclass(frozen=True)
class Backend:
    """A back end of Triton's.

    Attributes:
        platform: its older name, which must fit where it is given; "" where there is none.
        filename: how it wants the model's file to be named.
        kinds: where its instances run.
    """

    platform: str
    filename: str
    kinds: tuple[Kind, ...]


BACKENDS = {
    "onnxruntime": Backend("onnxruntime_onnx", "model.onnx", (Kind.CPU, Kind.GPU)),
    "openvino": Backend("", "model.xml", (Kind.CPU,)),
    "tensorrt": Backend("tensorrt_plan", "model.plan", (Kind.GPU,)),
}
_TYPE = re.compile("TYPE_(BOOL|U?INT(8|16|32|64)|FP(16|32|64)|BF16|STRING)")


def problems(config: ModelConfig) -> list[str]:
    """What is wrong with a configuration, in words; empty where nothing is."""
    return [*_model(config), *_tensors(config), *_groups(config), *_batching(config), *_warmups(config)]


def _model(config: ModelConfig) -> Iterator[str]:
    if not config.name or "/" in config.name or config.name in (".", ".."):
        yield f"name {config.name!r} is no folder of a repository"
    backend = BACKENDS.get(config.backend)
    if backend is None:
        yield f"backend {config.backend!r} is unknown; there are {', '.join(BACKENDS)}"
    elif config.platform not in ("", backend.platform):
        yield f"platform {config.platform!r} does not go with backend {config.backend!r}"
    if not config.default_model_filename or "/" in config.default_model_filename:
        yield f"default_model_filename {config.default_model_filename!r} is no file of a version"
    if config.max_batch_size < 0:
        yield f"max_batch_size {config.max_batch_size} is negative"


def _tensors(config: ModelConfig) -> Iterator[str]:
    for kind, tensors in (("input", config.inputs), ("output", config.outputs)):
        if not tensors:
            yield f"there is no {kind}"
        names = [tensor.name for tensor in tensors]
        yield from (f"{kind} {name!r} stands twice" for name in sorted({n for n in names if names.count(n) > 1}))
        for tensor in tensors:
            yield from (f"{kind} {tensor.name!r}: {problem}" for problem in _tensor(tensor))


def _tensor(tensor: Tensor) -> Iterator[str]:
    if not tensor.name:
        yield "has no name"
    if not _TYPE.fullmatch(tensor.data_type):
        yield f"data_type {tensor.data_type} is unknown"
    if not tensor.dims:
        yield "dims are empty; a scalar is dims [1] with an empty reshape"
    if any(size < 1 and size != -1 for size in tensor.dims):
        yield f"dims {list(tensor.dims)}: a size is from 1, or -1 for any"
    if tensor.reshape is not None:
        yield from _reshape(tensor.dims, tensor.reshape)


def _reshape(dims: Sequence[int], shape: Sequence[int]) -> Iterator[str]:
    """Both hold as many elements; axes of any size stand in both, with as many elements between them."""
    if any(size == 0 or size < -1 for size in shape):
        yield f"reshape {list(shape)}: a size is from 1, or -1 for any"
    elif _between(dims) != _between(shape):
        yield f"reshape {list(shape)} does not hold the elements of dims {list(dims)}"


def _between(shape: Sequence[int]) -> list[int]:
    """Elements before, between and behind the axes of any size."""
    found = [1]
    for size in shape:
        if size == -1:
            found.append(1)
        else:
            found[-1] *= size
    return found


def _groups(config: ModelConfig) -> Iterator[str]:
    if not config.instance_groups:
        yield "there is no instance_group"
    for group in config.instance_groups:
        yield from _group(config, group)


def _group(config: ModelConfig, group: InstanceGroup) -> Iterator[str]:
    if group.count < 1:
        yield f"instance_group: count {group.count} is below 1"
    if group.kind is Kind.CPU and group.gpus:
        yield "instance_group: KIND_CPU names GPUs"
    if len(set(group.gpus)) != len(group.gpus) or any(gpu < 0 for gpu in group.gpus):
        yield f"instance_group: gpus {list(group.gpus)} are no distinct numbers from 0"
    backend = BACKENDS.get(config.backend)
    if backend is not None and group.kind not in backend.kinds:
        yield f"instance_group: {config.backend} has no instances of {group.kind}"


def _batching(config: ModelConfig) -> Iterator[str]:
    batching = config.dynamic_batching
    if batching is None:
        return
    if config.max_batch_size < 1:
        yield "dynamic_batching with max_batch_size 0: the model has no batches, and Triton would not say so"
    yield from _sizes(batching, config.max_batch_size)
    for name in ("max_queue_delay_microseconds", "max_queue_size", "default_timeout_microseconds"):
        if getattr(batching, name) < 0:
            yield f"dynamic_batching: {name} is negative"
    if 0 < batching.default_timeout_microseconds <= batching.max_queue_delay_microseconds:
        yield "dynamic_batching: every request would time out while its batch waits for others"


def _sizes(batching: DynamicBatching, most: int) -> Iterator[str]:
    for size in batching.preferred_batch_size:
        if size < 1:
            yield f"dynamic_batching: preferred_batch_size {size} is below 1"
        elif size > most:
            yield f"dynamic_batching: preferred_batch_size {size} is above max_batch_size {most}"


def _warmups(config: ModelConfig) -> Iterator[str]:
    for warmup in config.warmups:
        yield from (f"model_warmup {warmup.name!r}: {problem}" for problem in _warmup(config, warmup))


def _warmup(config: ModelConfig, warmup: Warmup) -> Iterator[str]:
    if not warmup.name:
        yield "has no name"
    if not 1 <= warmup.batch_size <= max(1, config.max_batch_size):
        yield f"batch_size {warmup.batch_size} is not from 1 to {max(1, config.max_batch_size)}"
    wanted = {tensor.name: tensor for tensor in config.inputs}
    if warmup.inputs.keys() != wanted.keys():
        yield f"its inputs are {sorted(warmup.inputs)}, the model's {sorted(wanted)}"
    for name, given in warmup.inputs.items():
        tensor = wanted.get(name)
        if tensor is None:
            continue
        if given.data_type != tensor.data_type:
            yield f"{name!r} is {given.data_type}, the model's is {tensor.data_type}"
        fits = len(given.dims) == len(tensor.dims) and all(
            want in (-1, got) for want, got in zip(tensor.dims, given.dims, strict=False)
        )
        if not fits or any(size < 1 for size in given.dims):
            yield f"{name!r} has dims {list(given.dims)}, the model's are {list(tensor.dims)}"
        if not given.input_data_file or "/" in given.input_data_file:
            yield f"{name!r}: input_data_file {given.input_data_file!r} is no file of the folder `warmup`"
