"""`Program` -> a table in C that the executor walks, one per instruction set of the library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from deploykit.contract.errors import ConversionError
from deploykit.places.frames import tensor_head
from deploykit_targets.tvm.program import Operand, Port, Program, Region, Step

_REGIONS = {Region.CONSTANTS: "CONSTANTS", Region.ARENA: "ARENA"}
_PREFIX = "deploykit_program_"
_ARGUMENTS = "void *, const KernelArgument *, int32_t, KernelArgument *"
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # of NumPy's kinds in DLPack


def table_source(program: Program, needs: Sequence[str], name: str) -> str:
    """The source of `deploykit_program_<name>`.

    Args:
        needs: CPU features, LLVM's spelling.
        name: the name of the kernels' instruction set.
    Returns:
        C11; the same for the same program.
    Raises:
        ConversionError: an operand or port lies outside its region.
    """
    check(program)
    symbols = dict.fromkeys(step.symbol for step in program.steps)
    operands = [operand for step in program.steps for operand in step.operands]
    lines = [
        '#include "executor.h"',
        *(f"extern int32_t __tvm_ffi_{name}({_ARGUMENTS});" for name in symbols),
        _array("char *const", "needs", [*map(json.dumps, needs), "NULL"]),
        _array("Operand", "operands", map(_operand, operands)),
        _array("Step", "steps", _steps(program.steps)),
        _array("Port", "inputs", map(_port, program.inputs)),
        _array("Port", "outputs", map(_port, program.outputs)),
        f"const Program {_PREFIX}{name} = {{",
        f"  {json.dumps(name)}, needs, operands, steps, inputs, outputs,",
        f"  {len(operands)}, {len(program.steps)}, {len(program.inputs)}, {len(program.outputs)},",
        f"  {program.constant_bytes}, {program.arena_bytes},",
        "};",
    ]
    return "\n".join(lines) + "\n"


def heads_source(program: Program) -> str:
    """The source of what stands before the data of inputs and outputs in frames of the session protocol.

    Returns:
        C11; the same for the same program.
    """
    both = (("input", program.inputs), ("output", program.outputs))
    lines = ['#include "heads.h"']
    for kind, ports in both:
        entries = [_head(port) for port in ports] or ["{0}"]
        lines.append(f"const TensorHead deploykit_{kind}_heads[] = {{\n  " + ",\n  ".join(entries) + ",\n};")
    return "\n".join(lines) + "\n"


def _head(port: Port) -> str:
    data = tensor_head(port.name, port.dtype, port.shape)
    return '{"' + "".join(f"\\{byte:03o}" for byte in data) + f'", {len(data)}}}'


def index_source(names: Sequence[str]) -> str:
    """The source of `deploykit_programs`, in that order."""
    declared = [f"extern const Program {_PREFIX}{name};" for name in names]
    listed = ", ".join(f"&{_PREFIX}{name}" for name in names)
    return "\n".join(
        ('#include "executor.h"', *declared, f"const Program *const {_PREFIX[:-1]}s[] = {{{listed}, NULL}};", "")
    )


def check(program: Program) -> None:
    """Refuse a program that would read or write outside its memory.

    Raises:
        ConversionError: names the step or port. A defect of the lowering, not of the model.
    """
    sizes = {Region.CONSTANTS: program.constant_bytes, Region.ARENA: program.arena_bytes}
    for step in program.steps:
        for place, operand in enumerate(step.operands):
            end = _end(operand)
            if operand.offset < 0 or end > sizes[operand.region]:
                where = f"operand {place} of {step.symbol} ({step.node})"
                size = sizes[operand.region]
                raise ConversionError(f"tvm: {where} lies outside the {operand.region}: byte {end} of {size}")
        _check_output(step)
    for port in (*program.inputs, *program.outputs):
        if port.offset < 0 or port.offset + port_bytes(port) > program.arena_bytes:
            raise ConversionError(f"tvm: {port.name} lies outside the arena of {program.arena_bytes} bytes")


def _check_output(step: Step) -> None:
    """Kernels write some elements twice (the last vector overlaps the one before), and assume that nothing aliases."""
    output = step.operands[-1]
    if output.region is not Region.ARENA:
        raise ConversionError(f"tvm: {step.symbol} ({step.node}) writes to the {output.region}")
    for operand in step.operands[:-1]:
        apart = operand.offset >= _end(output) or output.offset >= _end(operand)
        if operand.region is Region.ARENA and not apart:
            what = f"{step.symbol} ({step.node})"
            raise ConversionError(f"tvm: {what} writes over what it reads, at byte {output.offset}")


def _end(operand: Operand) -> int:
    return operand.offset + operand.elements * np.dtype(operand.dtype).itemsize


def port_bytes(port: Port) -> int:
    """Bytes of an input or output."""
    return int(np.prod(port.shape, dtype=np.int64)) * np.dtype(port.dtype).itemsize


def _array(kind: str, name: str, entries: Iterable[str]) -> str:
    """C has no empty arrays: an entry of zeros stands for none."""
    listed = list(entries) or ["{0}"]
    return f"static const {kind} {name}[] = {{\n  " + ",\n  ".join(listed) + ",\n};"


def _operand(operand: Operand) -> str:
    dtype = np.dtype(operand.dtype)
    kind = f"{{{_CODES[dtype.kind]}, {8 * dtype.itemsize}, 1}}"
    return f"{{{_REGIONS[operand.region]}, {kind}, {operand.offset}, {operand.elements}}}"


def _steps(steps: Sequence[Step]) -> list[str]:
    found, first = [], 0
    for step in steps:
        found.append(f'{{"{step.symbol}", __tvm_ffi_{step.symbol}, {first}, {len(step.operands)}}}')
        first += len(step.operands)
    return found


def _port(port: Port) -> str:
    return f"{{{port.offset}, {port_bytes(port)}}}"
