"""Captured model -> library, program and constants, and what its steps compute in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.capture import unroll_recurrent
from deploykit.contract.errors import UsageError
from deploykit.contract.optional import versions
from deploykit.contract.precision import Precision
from deploykit.plugin.estimate import TRAFFIC
from deploykit.plugin.target import Conversion, ConversionJob
from deploykit_calibration.job import quantize
from deploykit_calibration.layers import float_layers, reconcile
from deploykit_calibration.placement import LayerPlacement
from deploykit_calibration.simulate import SimulatedModel
from deploykit_targets.tvm.build import LIBRARY, METADATA, build_library
from deploykit_targets.tvm.compiling import Compiler
from deploykit_targets.tvm.disassemble import confirm
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.lower import lower
from deploykit_targets.tvm.processor import processor_of, requirements_of
from deploykit_targets.tvm.reference import build_reference, needs_reference
from deploykit_targets.tvm.scheme import scheme_of
from deploykit_targets.tvm.traffic import traffic_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.contract.achieved import Achieved
    from deploykit_targets.tvm.disassemble import Instructions
    from deploykit_targets.tvm.program import Program


def convert(job: ConversionJob) -> Conversion:
    """Write the library, its constants and its program.

    Raises:
        UsageError: the model was captured with dynamic shapes.
        CaptureError: a recurrent layer cannot be unrolled.
        CalibrationError: static int8 without a table.
        ConversionError: an operator has no kernels; the message names op, module path and source line.
        MissingDependencyError: the C compiler for the device is not installed.
    """
    _refuse_dynamic(job)
    with Compiler() as compiler:
        job = replace(job, captured=unroll_recurrent(job.captured))
        processor = processor_of(job.device)
        kernels, graph = isa(processor.isa), None
        if job.precision is Precision.INT8:
            quantized = quantize(job, scheme_of(kernels.int8.activation, kernels.int8.weight_bits))
            layers, simulation = quantized.layers, SimulatedModel(job.captured, quantized)
            graph = quantized.graph_module
        else:
            layers, simulation = float_layers(job.captured), None
        finished = lower(job.captured, kernels, graph)
        parts = (finished.module, finished.program, finished.constants)
        library = build_library(*parts, job.device, job.folder, compile_with=compiler.compile)
    reference = build_reference(job.captured, graph, job.folder) if needs_reference(processor) else {}
    found = confirm(library.assembly, finished.program)
    return Conversion(
        entry=LIBRARY,
        achieved=_achieved(job, layers, finished.program, found),
        tool_versions=versions("torch", "apache-tvm", "apache-tvm-ffi"),
        simulation=simulation,
        log=library.log,
        requirements=requirements_of(processor.isa, processor.arch),
        metadata={
            METADATA: library.metadata,
            **reference,
            TRAFFIC: traffic_of(finished.program),
            "instructions": {node: str(instructions) for node, instructions in found.items()},
        },
    )


def _refuse_dynamic(job: ConversionJob) -> None:
    dynamic = sorted(name for name, axes in job.captured.dynamic_axes.items() if axes)
    if dynamic:
        raise UsageError(
            f"kernels are compiled for fixed shapes, and {', '.join(dynamic)} was captured with dynamic axes",
            hint="export with example_inputs of the batch size that the device runs, and no dynamic_batch or"
            " dynamic_shapes; one export per batch size",
        )


def _achieved(
    job: ConversionJob, layers: Iterable[LayerPlacement], program: Program, found: Mapping[str, Instructions]
) -> Achieved:
    executed = {step.node: "int8" if step.integer else "float32" for step in program.steps if step.macs}
    kinds = Counter(instructions.product.value for node, instructions in found.items() if executed[node] == "int8")
    counted = ", ".join(f"{count} by {kind}" for kind, count in sorted(kinds.items()))
    notes = [f"int8 layers: {counted}"] if counted else []
    source = "the machine code of the kernels that the compiled program calls"
    return reconcile(job.precision, layers, executed, source=source, notes=notes)
