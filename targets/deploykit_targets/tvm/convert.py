"""Captured model -> library, program and constants, and what its steps compute in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploykit.capture import unroll_recurrent
from deploykit.contract.errors import ConversionError, UsageError
from deploykit.contract.optional import versions
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_calibration.layers import reconcile
from deploykit_targets.tvm.bfloat16 import in_bfloat16
from deploykit_targets.tvm.build import LIBRARY, METADATA, link_library
from deploykit_targets.tvm.compiling import Compiler
from deploykit_targets.tvm.disassemble import Product, confirm
from deploykit_targets.tvm.processor import processors_of, requirements_of
from deploykit_targets.tvm.reference import build_reference, needs_reference
from deploykit_targets.tvm.tools import compiler_for
from deploykit_targets.tvm.traffic import traffic_of
from deploykit_targets.tvm.variants import compared, make_variants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.capture import CapturedModel
    from deploykit.contract.achieved import Achieved
    from deploykit_calibration.prepared import Prepared
    from deploykit_targets.tvm.build import Variant
    from deploykit_targets.tvm.disassemble import Instructions
    from deploykit_targets.tvm.program import Program

_DEFECT = "this is a defect of deploykit's kernels; please report it with the model's operators"


def adapt(captured: CapturedModel) -> CapturedModel:
    """Recurrent layers as products of every step, which kernels are generated for.

    Raises:
        CaptureError: a recurrent layer cannot be unrolled.
    """
    return unroll_recurrent(captured)


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write the library, its constants and its program.

    Raises:
        UsageError: the model was captured with dynamic shapes, which training has and kernels have not.
        ConversionError: an operator has no kernels; the message names op, module path and source line.
        MissingDependencyError: the C compiler for the device is not installed.
    """
    _check_shapes(prepared.captured)
    bfloat16 = prepared.precision is Precision.BF16
    processors = processors_of(prepared.device, bfloat16=bfloat16)
    compiler_for(processors[-1].arch).find()  # before minutes are spent
    graph = prepared.graph_module if prepared.scheme.quantizes else None
    graph = in_bfloat16(prepared.captured.graph_module) if bfloat16 else graph
    with Compiler() as compiler:
        variants, constants = make_variants(prepared.captured, graph, processors, compiler)
    library = link_library(variants, constants, prepared.device, folder)
    library = compared(library, folder, prepared.captured) if library.variants else library
    reference = build_reference(prepared.captured, graph, folder) if needs_reference(processors[-1]) else {}
    found = {variant.processor.isa: _confirmed(variant) for variant in variants}
    return Payload(
        entry=LIBRARY,
        achieved=_achieved(prepared, variants, found),
        tool_versions=versions("torch", "apache-tvm", "apache-tvm-ffi"),
        log=library.log,
        traffic=traffic_of(variants[-1].program),
        requirements=requirements_of(library.processor.isa, library.processor.arch),
        metadata={METADATA: library.metadata, **reference, "instructions": _instructions(found)},
    )


def _check_shapes(captured: CapturedModel) -> None:
    dynamic = sorted(name for name, axes in captured.dynamic_axes.items() if axes)
    if dynamic:
        raise UsageError(
            f"kernels are compiled for fixed shapes, and {', '.join(dynamic)} was captured with dynamic axes",
            hint="export with example_inputs of the batch size that the device runs, and no dynamic_batch or"
            " dynamic_shapes; one export per batch size",
        )


def _confirmed(variant: Variant) -> Mapping[str, Instructions]:
    from deploykit_targets.tvm.kernels.isa_bfloat16 import mnemonics

    return confirm(variant.kernels.assembly, variant.program, bfloat16=mnemonics(variant.processor.isa))


def _instructions(found: Mapping[str, Mapping[str, Instructions]]) -> dict[str, str]:
    """Multiplying instructions of each layer; of several variants, of each."""
    (first, *others) = found
    if not others:
        return {node: str(instructions) for node, instructions in found[first].items()}
    return {node: "; ".join(f"{name}: {own[node]}" for name, own in found.items()) for node in found[first]}


def _achieved(
    prepared: Prepared,
    variants: Sequence[Variant],
    found: Mapping[str, Mapping[str, Instructions]],
) -> Achieved:
    """What all variants compute in, which is the same, and how each multiplies."""
    computed = [_executed(variant.program) for variant in variants]
    if any(one != computed[0] for one in computed):
        raise ConversionError("tvm: variants of one library differ in what they compute in", hint=_DEFECT)
    notes = [
        f"{name}: {said}" if len(found) > 1 else said
        for name, own in found.items()
        if (said := _said(own, computed[0]))
    ]
    source = "the machine code of the kernels that the compiled program calls"
    left = "only products are in bfloat16" if prepared.precision is Precision.BF16 else ""
    return reconcile(prepared, computed[0], source=source, notes=notes, left=left)


def _executed(program: Program) -> dict[str, str]:
    return {step.node: step.computes for step in program.steps if step.macs}


def _said(found: Mapping[str, Instructions], executed: Mapping[str, str]) -> str:
    said = []
    for dtype in ("int8", "bfloat16"):
        own = [instructions.product for node, instructions in found.items() if executed[node] == dtype]
        if dtype == "bfloat16":  # widened to float32, where it has no instructions of its own
            own = [product if product is Product.BFLOAT16 else Product.FLOAT for product in own]
        kinds = Counter(product.value for product in own)
        counted = ", ".join(f"{count} by {kind}" for kind, count in sorted(kinds.items()))
        said += [f"{dtype} layers: {counted}"] if counted else []
    return "; ".join(said)
