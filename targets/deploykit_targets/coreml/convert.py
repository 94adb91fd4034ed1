"""Captured model -> .mlpackage in canonical form (or the .mlmodel of old systems), and what it says it computes in.

lower (names) ─▶ prescan ─▶ coremltools.convert ─▶ compress ─▶ interface ─▶ package ─▶ count
                                                └▶ network: the same steps in the old form
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.achieved import Achieved
from deploykit.contract.optional import versions
from deploykit.contract.precision import Precision
from deploykit.contract.quiet import kept_quiet
from deploykit.judge.profiling import DEFAULT_EFFORT
from deploykit.plugin.target import Payload
from deploykit_calibration.layers import reconcile
from deploykit_calibration.op_kinds import data_arguments, shape_of
from deploykit_targets._float16 import Float16Plan, plan_float16
from deploykit_targets._schemes.recurrent import notes_on_steps
from deploykit_targets.coreml import interface, network, package, prescan
from deploykit_targets.coreml.compress import WEIGHT_ONLY, compress
from deploykit_targets.coreml.count import Counted, count, origins, sources
from deploykit_targets.coreml.lower import Exported, exported
from deploykit_targets.coreml.mil_evaluator.milproto import import_coremltools
from deploykit_targets.coreml.scheme import OS_FLOOR, op_set_of
from deploykit_targets.coreml.target import BATCH_SIZES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit_calibration.prepared import Prepared
    from deploykit_targets.coreml.target import CoreMLOptions

_NOTES = {
    Precision.INT8: (
        "counted in the ML Program; Core ML decides on the device which unit computes a layer, and in what",
    ),
    Precision.FP16: ("sums inside a layer may be float32 or float16, as the compute unit has it",),
}
_STEPS = (
    "the program is longer, where fp16 has one native layer of an LSTM; what a device takes for it was not measured:"
    " compare with fp16 there"
)
_HELD_AS = "the precision is that of the stored weights; products run in float16"
_WIDTHS = {"int8": 1, "float16": 2, "float32": 4}


@dataclass(frozen=True, eq=False)
class _Made:
    """What was written: the file to open, what it was counted to hold, and what is recorded of it."""

    entry: str
    counted: Counted
    facts: dict[str, Any]
    made_for: dict[str, str]


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write `model.mlpackage`, or `model.mlmodel` in the old form.

    Raises:
        CalibrationError: static int8 without a table.
        ConversionError: an operator has no Core ML form; names op, module and source line.
        UnsupportedPrecisionError: the old form does not have it.
        UsageError: an option does not fit the model.
    """
    options: CoreMLOptions = prepared.options
    interface.check(prepared.captured, options)
    prescan.check_outputs(prepared.captured)
    if options.form == network.FORM:
        network.check(prepared.precision, options)
    log: list[str] = []
    with kept_quiet(log):
        import_coremltools()
        prescan.register_lstm()
        plan, lowered = _plan(prepared), _lowered(prepared)
        prescan.check(prepared.captured, lowered)
        old = options.form == network.FORM
        try:
            model = network.converted(prepared, lowered) if old else _program(prepared, lowered, plan)
        except Exception as error:
            raise prescan.refused(prepared.captured, lowered, error) from error
        made = _written(prepared, folder, lowered, model)
    traffic = _traffic(prepared)
    return Payload(
        entry=made.entry,
        achieved=plan.listed(_achieved(prepared, made.counted), prepared.captured),
        tool_versions=versions("torch", "coremltools"),
        log="\n".join(log),
        traffic=traffic,
        metadata=_metadata(traffic, made) | {"made_for": made.made_for, BATCH_SIZES: _batch_sizes(prepared)},
    )


def _plan(prepared: Prepared) -> Float16Plan:
    """What stays float32 in a float16 program; the old form, which has no such thing, refuses with layer and value."""
    plan = Float16Plan() if prepared.precision is Precision.FP32 else plan_float16(prepared)
    if prepared.options.form == network.FORM:
        why = "a Core ML neural network is float16 throughout"
        plan.refuse(prepared.captured, why, 'leave out form="neuralnetwork"')
    return plan


def _lowered(prepared: Prepared) -> Exported:
    graph = None if prepared.scheme.by_vendor or not prepared.scheme.quantizes else prepared.graph_module
    return exported(prepared.captured, graph)


def _batch_sizes(prepared: Prepared) -> list[int]:
    return interface.batch_sizes(prepared.captured, prepared.options, DEFAULT_EFFORT.batch_sizes)


def _op_set(prepared: Prepared) -> str:
    return op_set_of(
        prepared.options.deployment_target or str(prepared.device.extra["deployment_target"]), prepared.precision
    )


def _program(prepared: Prepared, lowered: Exported, plan: Float16Plan) -> Any:
    """The ML Program as coremltools makes it."""
    import coremltools

    options: CoreMLOptions = prepared.options
    precision = coremltools.precision
    inputs, outputs = interface.types(prepared.captured, options)
    return coremltools.convert(
        lowered.program,
        inputs=inputs,
        outputs=outputs,
        classifier_config=interface.classifier(options),
        minimum_deployment_target=coremltools.target[_op_set(prepared)],
        compute_precision=precision.FLOAT32 if prepared.precision is Precision.FP32 else _but(lowered, plan),
        convert_to="mlprogram",
        skip_model_load=True,
    )


def _but(lowered: Exported, plan: Float16Plan) -> Any:
    """Float16, but for what the plan keeps in float32."""
    import coremltools

    return coremltools.transform.FP16ComputePrecision(
        op_selector=lambda op: not any(name in plan.kept for name in origins(op, lowered.names))
    )


def _written(prepared: Prepared, folder: Path, lowered: Exported, model: Any) -> _Made:
    """Compress, declare and write a converted model, and read it again."""
    options: CoreMLOptions = prepared.options
    made_for = sources(model._mil_program, lowered.names)
    if options.form == network.FORM:
        model = network.compressed(model, prepared.precision, threshold=options.weight_threshold)
        path = network.write(interface.finished(model, prepared.captured, options), folder)
        counted, facts = network.count(path, prepared.precision, made_for)
        return _Made(network.ENTRY, counted, facts, made_for)
    if prepared.precision in WEIGHT_ONLY:
        model = compress(model, prepared.precision, threshold=options.weight_threshold, block_size=options.block_size)
    path = package.write(interface.finished(model, prepared.captured, options), folder)
    return _Made(package.ENTRY, count(path, made_for), _program_facts(path, _op_set(prepared)), made_for)


def _achieved(prepared: Prepared, counted: Counted) -> Achieved:
    precision, old = prepared.precision, prepared.options.form == network.FORM
    held = precision in WEIGHT_ONLY
    executed = {**counted.executed, **(counted.held if held else {})}
    notes = (network.NOTE,) if old else (_HELD_AS,) if held else _NOTES.get(precision, ())
    notes = (*notes, *notes_on_steps(prepared, _STEPS))
    read = "the neural network" if old else "the ML Program"
    left = "" if precision is Precision.FP32 else "coremltools leaves it in float32"
    return reconcile(prepared, executed, source=read, notes=notes, left=left)


def _program_facts(written: Path, op_set: str) -> dict[str, Any]:
    weights = written / "Data" / "com.apple.CoreML" / "weights"
    return {
        "form": "mlprogram",
        "op_set": op_set,
        "os_floor": OS_FLOOR[op_set],
        "specification_version": {"iOS16": 7, "iOS17": 8, "iOS18": 9}[op_set],
        "weight_bytes": sum(path.stat().st_size for path in weights.iterdir()) if weights.is_dir() else 0,
    }


def _traffic(prepared: Prepared) -> dict[str, list[int]]:
    nodes = {node.name: node for node in prepared.captured.graph_module.graph.nodes}
    return {layer.name: _elements(nodes[layer.name]) for layer in prepared.layers if layer.name in nodes}


def _metadata(traffic: Mapping[str, Sequence[int]], made: _Made) -> dict[str, Any]:
    executed = made.counted.executed
    elements = ((name, sum(counts)) for name, counts in traffic.items())
    moved = sum(count * _WIDTHS.get(executed.get(name, "float16"), 2) for name, count in elements)
    return {**made.facts, "ops": made.counted.ops, "activation_bytes": moved}


def _elements(node: Any) -> list[int]:
    """Elements that a layer reads (weights excluded) and writes."""
    value = node.meta["val"]
    written = value if isinstance(value, list | tuple) else (value,)
    return [sum(_size(read) for read in data_arguments(node)), sum(_size(each) for each in written)]


def _size(value: Any) -> int:
    size = 1
    for axis in shape_of(value):
        size *= axis
    return size
