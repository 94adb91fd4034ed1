"""Open Inference Protocol v2 over HTTP: what a request's body says, checked against a model's tensors.

JSON is read with the types of the protocol, and each tensor's data with the type of its tensor: a string among numbers,
`NaN`, 300 in an INT8 or a ragged list is refused with the field that holds it, never rounded, wrapped or cut. The
binary extension is read by its sizes, which must add up to the body. BYTES tensors are refused, FP16 is binary only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from deploykit.contract.tensors import TensorSpec
from deploykit_serving.datatypes import BINARY_ONLY, UNSERVED, datatype_of, datatype_of_array
from deploykit_serving.refusals import Refusal, malformed

Array = np.ndarray[Any, Any]
_UNSUPPORTED = ("classification", "shared_memory_region", "sequence_id")
_MOST_DIMENSIONS = 64  # of NumPy
_LARGEST = 1 << 40


# Values of parameters are scalars, says the protocol: nothing nested is read that nobody looks at.
_Parameters = dict[str, str | int | float | bool]


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters = {}


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: _Parameters = {}
    outputs: list[_Output] = []


_BODY = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, eq=False)
class Request:
    """An inference request that fits its model.

    Attributes:
        feeds: one array per input, by name.
        outputs: the wanted outputs in order, and whether each goes as binary data.
        id: what the client calls it; "" where it does not.
        timeout_ms: the client's own deadline, None where it names none.
    """

    feeds: dict[str, Array]
    outputs: tuple[tuple[str, bool], ...]
    id: str = ""
    timeout_ms: float | None = None


def read_request(
    body: bytes | bytearray, header_length: int | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Request:
    """Read the body of an inference request.

    Args:
        body: all of it.
        header_length: length of its JSON part, as the header `Inference-Header-Content-Length` says; None for all.
        inputs, outputs: of the model.
    Raises:
        Refusal: 400, with the field that is wrong.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise malformed("Inference-Header-Content-Length", f"is {header_length}, of a body of {len(body)} bytes")
    split = len(body) if header_length is None else header_length
    given = _decoded(memoryview(body)[:split])
    _refuse_unsupported("parameters", given.parameters)
    feeds = _feeds(given.inputs, memoryview(body)[split:], inputs)
    wanted = _wanted(given, outputs)
    return Request(feeds, wanted, given.id, _timeout_ms(given.parameters))


def _decoded(text: memoryview) -> _Body:
    try:
        return _BODY.decode(text)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        raise malformed(where.rstrip("`").lstrip(".") or "body", problem) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed("body", f"is not JSON: {error}") from error


def _refuse_unsupported(field: str, parameters: Mapping[str, Any]) -> None:
    """What would change the meaning of an answer is not passed over."""
    for name in _UNSUPPORTED:
        if name in parameters:
            raise malformed(f"{field}.{name}", "this extension is not supported")


def _timeout_ms(parameters: Mapping[str, Any]) -> float | None:
    """`parameters.timeout`: microseconds, as in Triton's schedule policy extension; 0 is none."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise malformed("parameters.timeout", f"must be microseconds as a whole number up to {_LARGEST}")
    return value / 1e3 if value else None


# -- inputs -----------------------------------------------------------------------------------------------------


def _feeds(given: Sequence[_Input], blob: memoryview, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    known = {spec.name: spec for spec in specs}
    feeds: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    offset = 0
    for index, each in enumerate(given):
        field = f"inputs[{index}]"
        spec = known.get(each.name)
        if spec is None:
            raise malformed(f"{field}.name", f"{_quoted(each.name)} is unknown; the inputs are {_listed(known)}")
        if each.name in feeds:
            raise malformed(f"{field}.name", f"{_quoted(each.name)} is given twice")
        _check_type(field, each, spec)
        _check_shape(field, each, spec, sizes)
        size = _binary_size(field, each)
        if size is None:
            feeds[each.name] = _from_json(field, each, spec)
        else:
            feeds[each.name] = _from_binary(field, each, spec, blob[offset : offset + size], size)
            offset += size
    missing = sorted(known.keys() - feeds.keys())
    if missing:
        raise malformed("inputs", f"lacks {_listed(missing)}; the inputs are {_listed(known)}")
    if offset != len(blob):
        raise malformed("inputs", f"{len(blob) - offset} bytes follow the binary data that the inputs announce")
    return feeds


def _check_type(field: str, given: _Input, spec: TensorSpec) -> None:
    wanted = datatype_of(spec)
    if given.datatype in UNSERVED:
        raise malformed(f"{field}.datatype", f"{given.datatype} is not served; {_quoted(spec.name)} is {wanted}")
    if given.datatype != wanted:
        raise malformed(f"{field}.datatype", f"{_quoted(given.datatype)}; {_quoted(spec.name)} is {wanted}")
    _refuse_unsupported(f"{field}.parameters", given.parameters)


def _check_shape(field: str, given: _Input, spec: TensorSpec, sizes: dict[str, int]) -> None:
    """Against the model's shape; axes of one name must be of one size in all inputs."""
    shape = tuple(given.shape)
    huge = next((index for index, size in enumerate(shape) if size > _LARGEST), None)
    if huge is not None:
        raise malformed(f"{field}.shape[{huge}]", "is larger than any tensor")
    if len(shape) > _MOST_DIMENSIONS or not spec.accepts(shape):
        raise malformed(f"{field}.shape", f"{_shape(shape)} does not fit {spec}")
    for axis, size in zip(spec.shape, shape, strict=True):
        if not isinstance(axis, str):
            continue
        if size < 1:
            raise malformed(f"{field}.shape", f"{_shape(shape)} holds no values; axis {axis!r} must be at least 1")
        if sizes.setdefault(axis, size) != size:
            raise malformed(f"{field}.shape", f"axis {axis!r} is {size} here and {sizes[axis]} in another input")


def _binary_size(field: str, given: _Input) -> int | None:
    """Bytes of a tensor that is sent as binary data; None for one in JSON."""
    size = given.parameters.get("binary_data_size")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise malformed(f"{field}.parameters.binary_data_size", f"must be a whole number of bytes, not {size!r}")
    if given.data:
        raise malformed(f"{field}.data", "stands beside binary_data_size; a tensor is sent in one way")
    return size


def _from_binary(field: str, given: _Input, spec: TensorSpec, blob: memoryview, size: int) -> Array:
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    needed = math.prod(given.shape) * dtype.itemsize
    where = f"{field}.parameters.binary_data_size"
    if size != needed:
        raise malformed(where, f"is {size}; {datatype_of(spec)} of shape {_shape(given.shape)} has {needed} bytes")
    if len(blob) != size:
        raise malformed(where, f"is {size}, and the body has but {len(blob)} bytes left")
    if spec.dtype == "bool" and size and max(blob) > 1:
        raise malformed(field, "holds a byte that is neither 0 nor 1 where BOOL is sent as binary data")
    array: Array = np.frombuffer(blob, dtype).reshape(given.shape)
    return array if dtype.isnative else array.astype(spec.dtype)


def _from_json(field: str, given: _Input, spec: TensorSpec) -> Array:
    datatype = datatype_of(spec)
    if not given.data:
        raise malformed(f"{field}.data", "is missing; send numbers here, or binary_data_size and binary data")
    if datatype in BINARY_ONLY:
        raise malformed(f"{field}.data", f"{datatype} has no form in JSON; send it as binary data")
    values = _values(field, given, _element(spec.dtype))
    try:
        with np.errstate(over="raise"):
            array: Array = np.array(values, dtype=spec.dtype)
    except (OverflowError, FloatingPointError) as error:
        raise malformed(f"{field}.data", f"a value does not fit {datatype}") from error
    except ValueError as error:
        raise malformed(f"{field}.data", f"nested lists of unequal lengths: {error}") from error
    if array.ndim > 1 and array.shape != tuple(given.shape):
        raise malformed(f"{field}.data", f"is nested as {_shape(array.shape)}; shape says {_shape(given.shape)}")
    if array.size != math.prod(given.shape):
        raise malformed(f"{field}.data", f"has {array.size} values; shape {_shape(given.shape)} has "
                        f"{math.prod(given.shape)}")  # fmt: skip
    return array.reshape(given.shape)


def _values(field: str, given: _Input, element: type) -> Any:
    """The data as a flat list, or nested as deep as the shape; each value of the type of the tensor."""
    problem: Exception
    try:
        return _decoder(element, 1).decode(given.data)
    except (msgspec.DecodeError, RecursionError) as error:
        problem = error
    if len(given.shape) > 1 and bytes(memoryview(given.data)[:64]).translate(None, b" \n\r\t").startswith(b"[["):
        try:
            return _decoder(element, len(given.shape)).decode(given.data)
        except (msgspec.DecodeError, RecursionError) as error:
            problem = error
    if not given.shape:  # a scalar may stand by itself
        try:
            return msgspec.json.decode(given.data, type=element)
        except (msgspec.DecodeError, RecursionError):
            pass
    text, _, where = str(problem).partition(" - at `$")
    raise malformed(f"{field}.data{where.rstrip('`')}", text) from problem


@functools.lru_cache(maxsize=256)
def _decoder(element: type, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = element
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _element(dtype: str) -> type:
    """What a JSON value of a tensor must be: numbers for floats, whole ones for integers, true and false for BOOL."""
    kind = np.dtype(dtype).kind
    return bool if kind == "b" else float if kind == "f" else int


# -- outputs ----------------------------------------------------------------------------------------------------


def _wanted(given: _Body, specs: Sequence[TensorSpec]) -> tuple[tuple[str, bool], ...]:
    """The wanted outputs, all where none is named, and whether each goes as binary data."""
    default = _flag("parameters.binary_data_output", given.parameters.get("binary_data_output", False))
    known = {spec.name: spec for spec in specs}
    chosen: dict[str, bool] = {}
    for index, each in enumerate(given.outputs):
        field = f"outputs[{index}]"
        if each.name not in known:
            raise malformed(f"{field}.name", f"{_quoted(each.name)} is unknown; the outputs are {_listed(known)}")
        if each.name in chosen:
            raise malformed(f"{field}.name", f"{_quoted(each.name)} is asked for twice")
        _refuse_unsupported(f"{field}.parameters", each.parameters)
        binary = each.parameters.get("binary_data", default)
        chosen[each.name] = _flag(f"{field}.parameters.binary_data", binary)
    found = tuple(chosen.items()) or tuple((name, default) for name in known)
    for name, binary in found:
        datatype = datatype_of(known[name])
        if datatype in BINARY_ONLY and not binary:
            raise malformed("outputs", f"{_quoted(name)} is {datatype}, which has no form in JSON; ask for binary_data")
    return found


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise malformed(field, f"must be true or false, not {value!r}")
    return value


@dataclass(frozen=True)
class Answer:
    """Body of an answer; `header_length` is that of its JSON part where binary data follows, else None."""

    body: bytes
    header_length: int | None


def write_answer(request: Request, outputs: Mapping[str, Array], *, model: str, version: str) -> Answer:
    """Write the answer to a request.

    Raises:
        Refusal: 406: an output that was asked for in JSON holds NaN or infinity, which JSON has no words for.
    """
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in request.outputs:
        array = outputs[name]
        tensor = {"name": name, "datatype": datatype_of_array(array), "shape": array.shape}
        if binary:
            blobs.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Refusal(
                    406,
                    f"output {_quoted(name)} holds NaN or infinity, which JSON cannot say; ask for it as binary data",
                    reason="not_finite",
                )
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        head["id"] = request.id
    text = msgspec.json.encode({**head, "outputs": tensors})
    return Answer(b"".join((text, *blobs)), len(text)) if blobs else Answer(text, None)


# -- words ------------------------------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    """A client's word, short and without what steers a terminal."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape[:8]))}{', ...' if len(shape) > 8 else ''}]"
