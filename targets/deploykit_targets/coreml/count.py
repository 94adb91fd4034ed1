"""What an ML Program says it computes in, counted op by op in the package as it was written.

A layer is int8 where every tensor that it reads comes from `dequantize` or a `constexpr_*` op of 8 bits or fewer, and,
where it does not multiply, where its result is quantized again; what a device makes of that cannot be seen here. Where
weights alone are compressed, the precision is that of the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit_targets.coreml.mil_evaluator import milproto
from deploykit_targets.coreml.mil_evaluator.package import locate

_FLOATS = {"fp16": "float16", "fp32": "float32"}
_READ = ("x", "y", "weight", "values", "weight_ih", "weight_hh")
_MULTIPLYING = frozenset({"conv", "conv_transpose", "linear", "matmul", "einsum", "lstm", "gru", "rnn", "while_loop"})
_FUSED = frozenset({"relu", "relu6", "clip", "cast"})
_NOT_COUNTED = frozenset({"const", "cast", "quantize", "dequantize", "transpose", "reshape", "expand_dims", "squeeze"})


@dataclass(frozen=True)
class Counted:
    """What was found in a program.

    Attributes:
        executed: captured node name -> `int8`, `float16`, `float32`.
        held: captured node name -> precision of its stored weights, such as `int4` or `6-bit palette`, where they are
            compressed and its activations are float.
        ops: number of ops of each kind, constants not counted.
    """

    executed: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)


def sources(program: Any, names: Sequence[str]) -> dict[str, str]:
    """Op, or output of one -> captured node that it was made for, read from a program that coremltools just converted.

    Args:
        program: PyMIL program.
        names: the names of the captured nodes, by debug handle.
    """
    found: dict[str, str] = {}
    for op in _operations(program.functions["main"]):
        if op.op_type == "const":
            continue
        for name in origins(op, names):
            found.update(dict.fromkeys([op.name, *(output.name for output in op.outputs)], name))
    return found


def origins(op: Any, names: Sequence[str]) -> Iterator[str]:
    """The captured nodes that a PyMIL op was made for; `names` as for `sources`."""
    from coremltools.converters.mil.mil.scope import ScopeSource

    yield from (
        names[int(handle)] for handle in op.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) or () if handle is not None
    )


def count(package: Path, made_for: Mapping[str, str]) -> Counted:
    """Count a written package.

    Args:
        package: the .mlpackage.
        made_for: output of an op -> captured node, from `sources`.
    """
    files = locate(package)
    program = milproto.load_program(milproto.read_specification(files.specification), files.weights)
    main = program.functions["main"]
    counted = Counted(
        ops=dict(sorted(Counter(op.op_type for op in _operations(main) if op.op_type != "const").items()))
    )
    heavy: set[str] = set()
    for op in _operations(main):
        name = next((made_for[output.name] for output in op.outputs if output.name in made_for), None)
        if name is None or op.op_type in _NOT_COUNTED or op.op_type.startswith("constexpr_"):
            continue
        if milproto.type_of(op.outputs[0])[0] not in _FLOATS:  # index arithmetic beside a gather
            continue
        multiplies = op.op_type in _MULTIPLYING
        if name in counted.executed and (name in heavy or not multiplies):
            continue
        if multiplies:
            heavy.add(name)
        _enter(counted, name, op)
    return counted


def _enter(counted: Counted, name: str, op: Any) -> None:
    read = {key: list(_producers(op.inputs[key])) for key in _READ if op.inputs.get(key) is not None}
    widths = [_integer_width(producer) for key in read for producer in read[key]]
    own = _FLOATS[milproto.type_of(op.outputs[0])[0]]
    integers = bool(widths) and all(widths) and (op.op_type in _MULTIPLYING or _is_quantized(op.outputs[0]))
    counted.executed[name] = "int8" if integers else own
    weights = [_held(producer) for key in read if key.startswith("weight") for producer in read[key]]
    # matmul, gather and the like have their weight as x or y
    stored = [found for found in (weights or [_held(p) for key in read for p in read[key]]) if found]
    if stored and counted.executed[name] == own:
        counted.held[name] = stored[0]


def _producers(value: Any) -> Iterator[Any]:
    for item in value if isinstance(value, list | tuple) else (value,):
        yield item.op


def _is_quantized(value: Any) -> bool:
    """Whether some consumer, through activations, is `quantize`."""
    return any(
        op.op_type == "quantize" or (op.op_type in _FUSED and _is_quantized(op.outputs[0])) for op in value.child_ops
    )


def _integer_width(producer: Any) -> bool:
    """Whether a value is stored or computed as integers of at most 8 bits."""
    if producer is None:
        return False
    return producer.op_type == "dequantize" or producer.op_type in (
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
    )


def _held(producer: Any) -> str:
    """Precision of a stored weight; "" where it is plain, or no weight."""
    if producer is None:
        return ""
    match producer.op_type:
        case "constexpr_affine_dequantize":
            return milproto.type_of(producer.inputs["quantized_data"])[0]
        case "constexpr_blockwise_shift_scale":
            return milproto.type_of(producer.inputs["data"])[0]
        case "constexpr_lut_to_dense":
            lut = producer.inputs["lut"].val
            size = lut.size if producer.inputs["indices"].rank == 1 else lut.shape[-2]
            return f"{(int(size) - 1).bit_length()}-bit palette"
    return ""


def _operations(block: Any) -> Iterator[Any]:
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from _operations(inner)
