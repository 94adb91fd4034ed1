"""Captured model -> .mlpackage in canonical form, and what the ML Program in it says it computes in.

lower (names) ─▶ prescan ─▶ coremltools.convert ─▶ compress ─▶ interface ─▶ package ─▶ count
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deploykit._optional import versions
from deploykit.achieved import Achieved
from deploykit.errors import CalibrationError
from deploykit.estimate import TRAFFIC
from deploykit.precision import Precision
from deploykit.quiet import kept_quiet
from deploykit.target import Conversion, ConversionJob
from deploykit_calibration.layers import float_layers, layer_aliases, reconcile
from deploykit_calibration.op_kinds import data_arguments, shape_of
from deploykit_calibration.placement import LayerPlacement, place
from deploykit_calibration.simulate import SimulatedModel
from deploykit_targets.coreml import interface, package, prescan
from deploykit_targets.coreml.compress import WEIGHT_ONLY, compress
from deploykit_targets.coreml.count import Counted, count, sources
from deploykit_targets.coreml.lower import Exported, exported, without_high_ranks
from deploykit_targets.coreml.mil_evaluator._milproto import import_coremltools
from deploykit_targets.coreml.scheme import OS_FLOOR, SCHEME, op_set_of

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.table import CalibrationTable
    from deploykit_targets.coreml.target import CoreMLOptions

_NOTES = {
    Precision.INT8: (
        "counted in the ML Program; Core ML decides on the device which unit computes a layer, and in what",
    ),
    Precision.FP16: ("sums inside a layer may be float32 or float16, as the compute unit has it",),
}
_HELD_AS = "the precision is that of the stored weights; products run in float16"
_WIDTHS = {"int8": 1, "float16": 2, "float32": 4}


@dataclass(frozen=True, eq=False)
class _Source:
    """What is converted, and how it was placed."""

    captured: CapturedModel
    lowered: Exported
    layers: tuple[LayerPlacement, ...]
    simulation: SimulatedModel | None


def convert(job: ConversionJob) -> Conversion:
    """Write `model.mlpackage`.

    Raises:
        CalibrationError: static int8 without a table.
        ConversionError: an operator has no Core ML form; names op, module and source line.
        UsageError: an option does not fit the model.
    """
    options: CoreMLOptions = job.options
    interface.check(job.captured, options)
    log: list[str] = []
    with kept_quiet(log):
        import_coremltools()
        prescan.register_lstm()
        source = _source(job)
        prescan.check(source.captured, source.lowered)
        op_set = op_set_of(options.deployment_target or str(job.device.extra["deployment_target"]), job.precision)
        model = _converted(job, source, op_set)
        made_for = sources(model._mil_program, source.lowered.names)
        if job.precision in WEIGHT_ONLY:
            threshold, block_size = options.weight_threshold, options.block_size
            model = compress(model, job.precision, threshold=threshold, block_size=block_size)
        model = interface.finished(model, job.captured, options)
        written = package.write(model, job.folder)
        counted = count(written, made_for)
    return Conversion(
        entry=package.ENTRY,
        achieved=_achieved(job.precision, source, counted),
        tool_versions=versions("torch", "coremltools"),
        simulation=source.simulation,
        log="\n".join(log),
        metadata=_metadata(source, counted, op_set, written) | {"made_for": made_for},
    )


def _source(job: ConversionJob) -> _Source:
    if job.precision is not Precision.INT8:
        return _Source(job.captured, exported(job.captured), float_layers(job.captured), None)
    if job.table is None:
        raise CalibrationError("a static int8 conversion needs a calibration table", hint="pass calibration=")
    table = cast("CalibrationTable", job.table)
    placed = place(job.captured, table, SCHEME, method=job.method, include=job.include, exclude=job.exclude)
    placed = replace(placed, graph_module=without_high_ranks(placed.graph_module))
    lowered = exported(job.captured, placed.graph_module)
    return _Source(job.captured, lowered, placed.layers, SimulatedModel(job.captured, placed))


def _converted(job: ConversionJob, source: _Source, op_set: str) -> Any:
    import coremltools

    options: CoreMLOptions = job.options
    precision = coremltools.precision
    inputs, outputs = interface.types(job.captured, options)
    classifier = coremltools.ClassifierConfig(list(options.class_labels)) if options.class_labels else None
    try:
        return coremltools.convert(
            source.lowered.program,
            inputs=inputs,
            outputs=outputs,
            classifier_config=classifier,
            minimum_deployment_target=coremltools.target[op_set],
            compute_precision=precision.FLOAT32 if job.precision is Precision.FP32 else precision.FLOAT16,
            convert_to="mlprogram",
            skip_model_load=True,
        )
    except Exception as error:
        raise prescan.refused(source.captured, source.lowered, error) from error


def _achieved(precision: Precision, source: _Source, counted: Counted) -> Achieved:
    tails = layer_aliases(source.captured)
    executed = {tails.get(name, name): found for name, found in counted.executed.items()}
    executed |= counted.executed
    held = precision in WEIGHT_ONLY
    if held:
        executed |= counted.held
    reasons = {
        layer.name: "its weights are too small to be compressed, or not constant"
        for layer in source.layers
        if held and layer.weights and layer.name not in counted.held
    }
    notes = (_HELD_AS,) if held else _NOTES.get(precision, ())
    return reconcile(precision, source.layers, executed, source="the ML Program", reasons=reasons, notes=notes)


def _metadata(source: _Source, counted: Counted, op_set: str, written: Path) -> dict[str, Any]:
    nodes = {node.name: node for node in source.captured.graph_module.graph.nodes}
    traffic = {layer.name: _elements(nodes[layer.name]) for layer in source.layers if layer.name in nodes}
    moved = sum(
        sum(elements) * _WIDTHS.get(counted.executed.get(name, "float16"), 2) for name, elements in traffic.items()
    )
    weights = written / "Data" / "com.apple.CoreML" / "weights"
    return {
        "op_set": op_set,
        "os_floor": OS_FLOOR[op_set],
        "specification_version": {"iOS16": 7, "iOS17": 8, "iOS18": 9}[op_set],
        "ops": counted.ops,
        "weight_bytes": sum(path.stat().st_size for path in weights.iterdir()) if weights.is_dir() else 0,
        "activation_bytes": moved,
        TRAFFIC: traffic,
    }


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
