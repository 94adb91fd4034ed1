"""Several variants of a program in one library: lowered over one block of constants, and compared where they run."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.contract.decibels import sqnr_db
from deploykit.contract.errors import ConversionError, DeviceError
from deploykit.places import qemu
from deploykit_targets.tvm.build import CONSTANTS, PROGRAM, RUNNER, Library, Variant, read_program
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.lower import lower
from deploykit_targets.tvm.native import Model
from deploykit_targets.tvm.planning import ConstantBlock
from deploykit_targets.tvm.runtime.table import port_bytes

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from deploykit.capture import CapturedModel
    from deploykit_targets.tvm.compiling import Compiler
    from deploykit_targets.tvm.processor import Processor

_LEAST_DB = 20.0  # what differs is a rounding here and there; a wrong kernel gives about 0


def make_variants(
    captured: CapturedModel, graph: GraphModule | None, processors: Sequence[Processor], compiler: Compiler
) -> tuple[list[Variant], bytes]:
    """Lower a model for each processor; one is compiled while the next is lowered.

    Args:
        graph: its q/dq copy; None for float.
        processors: best first.
    Returns:
        The variants in that order, and the constants that all of them read.
    """
    block, programs = ConstantBlock(), []
    for processor in processors:
        prefix = f"{processor.isa}_" if len(processors) > 1 else ""
        finished = lower(captured, isa(processor.isa), graph, prefix=prefix, block=block)
        compiler.submit(finished.module, processor)
        programs.append(finished.program)
    made = zip(processors, programs, compiler.results(), strict=True)
    return [Variant(*parts) for parts in made], block.data


def compared(library: Library, folder: Path, captured: CapturedModel) -> Library:
    """The library with what its variants differ by on the example inputs, of those that run here.

    Code for this architecture runs on this CPU, where that has what it needs; other code under emulation.

    Raises:
        ConversionError: one computes something else than the best. A defect.
    """
    feeds = {name: tensor.detach().cpu().numpy() for name, tensor in captured.example_feeds().items()}
    names = [variant.isa for variant in library.variants]
    if library.processor.arch == platform.machine():
        outputs = {name: _outputs(folder, names, name, feeds) for name in names}
    elif qemu.EMULATOR.installed:
        emulator = qemu.emulator_for(library.emulators)
        outputs = {name: _emulated(emulator, folder, name, feeds) for name in names}
    else:
        outputs = dict.fromkeys(names)
    best = next((found for found in outputs.values() if found is not None), None)
    facts = []
    for variant in library.variants:
        found = outputs[variant.isa]
        agreement = None if found is None or best is None else _agreement_db(best, found)
        if agreement is not None and agreement < _LEAST_DB:
            raise ConversionError(
                f"tvm: the kernels for {variant.isa} differ from the others: {agreement:.1f} dB",
                hint="this is a defect of deploykit's kernels; please report it with the model's operators",
            )
        facts.append(replace(variant, sqnr_db=agreement))
    return replace(library, variants=tuple(facts))


def _outputs(
    folder: Path, names: Sequence[str], name: str, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """None where this CPU lacks what the variant needs."""
    try:
        model = Model(folder, 1, names, variant=name)
    except DeviceError:
        return None
    try:
        return model.run(feeds)
    finally:
        model.close()


def _emulated(
    emulator: qemu.Emulator, folder: Path, name: str, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """By the program for boards.

    Raises:
        ConversionError: it ended otherwise than well.
    """
    program = read_program(folder / PROGRAM)
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch, "inputs"), Path(scratch, "outputs")
        given.write_bytes(b"".join(np.ascontiguousarray(feeds[port.name]).tobytes() for port in program.inputs))
        done = emulator.run(folder / RUNNER, folder / CONSTANTS, "1", given, found, name)
        if done.returncode:
            raise ConversionError(f"tvm: the kernels for {name} cannot be run: {done.stderr.strip()}")
        data, outputs, at = found.read_bytes(), {}, 0
    for port in program.outputs:
        outputs[port.name] = np.frombuffer(data[at : at + port_bytes(port)], port.dtype).reshape(port.shape)
        at += port_bytes(port)
    return outputs


def _agreement_db(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """The agreement of the worst output."""
    pairs = [(array.astype(np.float64), found[name].astype(np.float64)) for name, array in wanted.items()]
    return min((sqnr_db(float((a**2).sum()), float(((a - b) ** 2).sum())) for a, b in pairs), default=200.0)
