"""Run a lowered model step by step from Python, without the library: what tests of the lowering need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.contract.host import this_host
from deploykit_targets.tvm.emit import Finished
from deploykit_targets.tvm.processor import X86_ISAS, tiles_granted
from deploykit_targets.tvm.program import Region


def host_isa() -> str:
    """The best instruction set of this machine that kernels exist for."""
    usable = (name for name, features in X86_ISAS if all(map(this_host().has, features)))
    return next((name for name in usable if name != "amx_int8" or tiles_granted()), "avx2")


def execute(finished: Finished, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every step on an arena of NumPy's; memory that nothing wrote yet is noise."""
    import tvm

    from deploykit_targets.tvm.kernels.isa import isa

    target = dict(isa(host_isa()).target)
    kernels = (
        tvm.compile(finished.module, target=tvm.target.Target(target, host=target)) if finished.program.steps else {}
    )
    program = finished.program
    memory = {
        Region.ARENA: np.random.default_rng(0).integers(0, 255, program.arena_bytes, dtype=np.uint8),
        Region.CONSTANTS: np.frombuffer(finished.constants, np.uint8),
    }
    arena = memory[Region.ARENA]
    for port in program.inputs:
        data = np.ascontiguousarray(feeds[port.name]).reshape(-1).view(np.uint8)
        arena[port.offset : port.offset + data.size] = data
    for step in program.steps:
        arguments: list[Any] = []
        for operand in step.operands:
            size = operand.elements * np.dtype(operand.dtype).itemsize
            part = memory[operand.region][operand.offset : operand.offset + size]
            assert part.size == size, f"{step.node}: {operand} lies beyond its region"
            arguments.append(tvm.runtime.tensor(part.view(operand.dtype).copy()))
        kernels[step.symbol](*arguments)
        for operand, argument in zip(step.operands, arguments, strict=True):
            if operand.region == Region.ARENA:
                result = argument.numpy().view(np.uint8)
                arena[operand.offset : operand.offset + result.size] = result
    found = {}
    for port in program.outputs:
        size = math.prod(port.shape) * np.dtype(port.dtype).itemsize
        found[port.name] = arena[port.offset : port.offset + size].copy().view(port.dtype).reshape(port.shape)
    return found


def sqnr_db(want: Any, got: Any) -> float:
    """Signal over error in dB; infinite when equal."""
    signal, error = np.asarray(want, np.float64), np.asarray(want, np.float64) - np.asarray(got, np.float64)
    power = float((error**2).sum())
    return float("inf") if power == 0 else float(10 * np.log10((signal**2).sum() / power))
