"""Captured model -> library, program and constants, and what its steps compute in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploykit.capture import unroll_recurrent
from deploykit.contract.errors import UsageError
from deploykit.contract.optional import versions
from deploykit.plugin.target import Payload
from deploykit_calibration.layers import reconcile
from deploykit_targets.tvm.build import LIBRARY, METADATA, build_library
from deploykit_targets.tvm.compiling import Compiler
from deploykit_targets.tvm.disassemble import confirm
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.lower import lower
from deploykit_targets.tvm.processor import processor_of, requirements_of
from deploykit_targets.tvm.reference import build_reference, needs_reference
from deploykit_targets.tvm.traffic import traffic_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.capture import CapturedModel
    from deploykit.contract.achieved import Achieved
    from deploykit_calibration.prepared import Prepared
    from deploykit_targets.tvm.disassemble import Instructions
    from deploykit_targets.tvm.program import Program


def adapt(captured: CapturedModel) -> CapturedModel:
    """Recurrent layers as products of every step, which kernels are generated for.

    Raises:
        UsageError: the model was captured with dynamic shapes.
        CaptureError: a recurrent layer cannot be unrolled.
    """
    dynamic = sorted(name for name, axes in captured.dynamic_axes.items() if axes)
    if dynamic:
        raise UsageError(
            f"kernels are compiled for fixed shapes, and {', '.join(dynamic)} was captured with dynamic axes",
            hint="export with example_inputs of the batch size that the device runs, and no dynamic_batch or"
            " dynamic_shapes; one export per batch size",
        )
    return unroll_recurrent(captured)


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write the library, its constants and its program.

    Raises:
        ConversionError: an operator has no kernels; the message names op, module path and source line.
        MissingDependencyError: the C compiler for the device is not installed.
    """
    processor = processor_of(prepared.device)
    graph = prepared.graph_module if prepared.scheme.quantizes else None
    with Compiler() as compiler:
        finished = lower(prepared.captured, isa(processor.isa), graph)
        parts = (finished.module, finished.program, finished.constants)
        library = build_library(*parts, prepared.device, folder, compile_with=compiler.compile)
    reference = build_reference(prepared.captured, graph, folder) if needs_reference(processor) else {}
    found = confirm(library.assembly, finished.program)
    return Payload(
        entry=LIBRARY,
        achieved=_achieved(prepared, finished.program, found),
        tool_versions=versions("torch", "apache-tvm", "apache-tvm-ffi"),
        log=library.log,
        traffic=traffic_of(finished.program),
        requirements=requirements_of(processor.isa, processor.arch),
        metadata={
            METADATA: library.metadata,
            **reference,
            "instructions": {node: str(instructions) for node, instructions in found.items()},
        },
    )


def _achieved(prepared: Prepared, program: Program, found: Mapping[str, Instructions]) -> Achieved:
    executed = {step.node: "int8" if step.integer else "float32" for step in program.steps if step.macs}
    kinds = Counter(instructions.product.value for node, instructions in found.items() if executed[node] == "int8")
    counted = ", ".join(f"{count} by {kind}" for kind, count in sorted(kinds.items()))
    notes = [f"int8 layers: {counted}"] if counted else []
    source = "the machine code of the kernels that the compiled program calls"
    return reconcile(prepared.precision, prepared.layers, executed, source=source, notes=notes)
