"""Captured model -> .tflite: the float or q/dq graph goes to a child process; what comes back is counted here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import UsageError
from deploykit.contract.optional import versions
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_calibration.layers import layer_aliases, reconcile, shown_names
from deploykit_targets._float16 import Float16Plan, plan_float16
from deploykit_targets.litert import flatbuffer, program
from deploykit_targets.litert.count import executed, stored
from deploykit_targets.litert.delegation import delegation
from deploykit_targets.litert.lower import lowered
from deploykit_targets.litert.opens import check_opens
from deploykit_targets.litert.quantize import VENDOR_PRECISIONS
from deploykit_targets.litert.scheme import NO_16_BITS
from deploykit_targets.litert.worker import Request, worker

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.contract.achieved import Achieved
    from deploykit.contract.tensors import TensorSpec
    from deploykit_calibration.prepared import Prepared

_ENTRY = "model.tflite"
_DIALECT = "LiteRT computes with float32 activations"
_NOTES = {
    Precision.FP16: (f"weights are stored in float16; {_DIALECT}, in float16 where the app asks XNNPACK for it",),
    Precision.INT8_DYNAMIC: ("activations are rounded to int8 at run time",),
    Precision.INT8_WEIGHT_ONLY: (f"weights are stored in int8; {_DIALECT}",),
    Precision.INT16X8: ("int16 activations are for NPUs and microcontrollers: on a CPU they are slower than float",),
    Precision.INT4_WEIGHT_ONLY: (f"weights are stored in int4; {_DIALECT}",),
}
_LEFT = {Precision.INT16X8: NO_16_BITS}
_BEYOND = "float16 does not hold its weights as the file has them: beyond 65504, or below 6.1e-05"
_DYNAMIC = 'layers that write graph outputs round their input at run time, and write float; io="int8" makes them static'
_HELD = (Precision.INT8_WEIGHT_ONLY, Precision.INT4_WEIGHT_ONLY, Precision.FP16)


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write `model.tflite`, and count what it computes in.

    Raises:
        UsageError: the model was captured with dynamic shapes, or int8 inputs were asked of a float model.
        CalibrationError: static int8 without a table.
        ConversionError: the converter refused or crashed; the message names op, module path and source line.
    """
    _check(prepared)
    worker().start()  # its imports run beside our own work
    labels = _labels(prepared)
    graph_module = lowered(prepared.captured, prepared.graph_module)
    request = Request(
        settings=_settings(prepared, labels),
        write_program=lambda path: program.save(path, graph_module, prepared.captured.example_inputs, labels),
        origins=prepared.captured.origins,
        destination=folder / _ENTRY,
    )
    interface, log = worker().convert(request)
    check_opens(folder / _ENTRY, prepared.captured, prepared.options.kernels)
    return Payload(
        entry=_ENTRY,
        achieved=_achieved(prepared, folder / _ENTRY),
        tool_versions=versions("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
        log=log,
        metadata={"file": {**interface, "rounded_at_run_time": sorted(_rounded_at_run_time(prepared))}},
    )


def _check(prepared: Prepared) -> None:
    dynamic = sorted(name for name, axes in prepared.captured.dynamic_axes.items() if axes)
    if dynamic:
        raise UsageError(
            f"LiteRT files have fixed shapes here, and {', '.join(dynamic)} was captured with dynamic axes",
            hint="export with example_inputs of the size that the device runs, and no dynamic_batch or dynamic_shapes",
        )
    _check_normalisation(prepared)


def _check_normalisation(prepared: Prepared) -> None:
    mean, std = prepared.options.mean, prepared.options.std
    if not mean and not std:
        return
    images = [spec for spec in prepared.captured.inputs if spec.layout in ("NCHW", "NHWC")]
    channels = {int(spec.shape[spec.layout.index("C")]) for spec in images if spec.layout}
    if len(mean) != len(std) or {len(mean)} not in ({1}, channels) or 0.0 in std or not images:
        raise UsageError(
            f"mean={mean} and std={std} do not fit: one number each, or one for each channel of the image inputs"
            f" ({', '.join(map(str, images)) or 'there are none'}); std is not 0",
            hint="they only describe what the app does before it runs the file: (pixel - mean) / std",
        )


def _rounded_at_run_time(prepared: Prepared) -> frozenset[str]:
    """Layers of a static model that round their input at run time, and write float."""
    return frozenset() if prepared.scheme.by_vendor else frozenset(prepared.placed.run_time)


def _settings(prepared: Prepared, labels: dict[str, str]) -> dict[str, Any]:
    """What the converter's process is told; see `convert_child`."""
    layout, static = prepared.options.layout, prepared.precision is Precision.INT8
    ends = {
        "inputs": [_wanted(spec, layout) for spec in prepared.captured.inputs],
        "outputs": [_wanted(spec, layout) for spec in prepared.captured.outputs],
    }
    float_file = [prepared.captured.fingerprint, sorted(labels.items()), ends]
    return {
        "static": static,
        "float_key": None if static else hashlib.sha256(json.dumps(float_file).encode()).hexdigest(),
        "precision": prepared.precision.value if prepared.precision.value in VENDOR_PRECISIONS else None,
        "kept_float": sorted(prepared.excluded),
        "dynamic": sorted(_rounded_at_run_time(prepared)),
        "ranges": _ranges(prepared) if prepared.precision is Precision.INT16X8 else {},
        "io": prepared.options.io,
        "about": _about(prepared),
        **ends,
    }


def _about(prepared: Prepared) -> dict[str, Any]:
    """What the file's metadata says beside what the file itself does."""
    options, inputs = prepared.options, [spec.name for spec in prepared.captured.inputs]
    nodes = {str(node.target): node.name for node in prepared.captured.graph_module.graph.find_nodes(op="placeholder")}
    seen = prepared.extremes
    observed = {name: seen[nodes[name]] for name in inputs if nodes[name] in seen}
    return {
        "name": options.name,
        "description": options.description or f"{prepared.precision} for {prepared.device.name}, exported by deploykit",
        "mean": options.mean,
        "std": options.std,
        "inputs": inputs,
        "observed": observed,
    }


def _ranges(prepared: Prepared) -> dict[str, tuple[float, float]]:
    """What our calibration saw, for symmetric 16 bit: of every node, and of the ends by the converter's names."""
    found = prepared.ranges()
    graph = prepared.captured.graph_module.graph
    (end,) = graph.find_nodes(op="output")
    ends = {f"args_{i}": node for i, node in enumerate(graph.find_nodes(op="placeholder"))}
    ends.update({f"output_{i}": node for i, node in enumerate(end.args[0])})
    return {**found, **{name: found[node.name] for name, node in ends.items() if getattr(node, "name", "") in found}}


def _wanted(spec: TensorSpec, layout: str) -> dict[str, Any]:
    channels_last = layout == "nhwc" and len(spec.shape) == 4 and spec.dtype.startswith("float")
    return {"name": spec.name, "dtype": spec.dtype, "layout": "NHWC" if channels_last else spec.layout}


def _labels(prepared: Prepared) -> dict[str, str]:
    """Names in the file that are not those of the nodes: what quantizes a weight is named for its layer."""
    layers = {layer.name for layer in prepared.layers}
    names = (node.name for node in prepared.graph_module.graph.nodes if node.op == "call_function")
    owners = ((name, name.split("_weight_")[0]) for name in names)
    return {name: owner for name, owner in owners if owner != name and owner in layers}


def _achieved(prepared: Prepared, path: Path) -> Achieved:
    model = flatbuffer.read(path)
    names = shown_names(prepared)
    found = executed(model, names)
    if prepared.precision in _HELD:  # the precision is that of the stored weights, not that of the arithmetic
        found.update(stored(model, names))
    notes = _NOTES.get(prepared.precision, ())
    counted = reconcile(
        prepared,
        found,
        source="operators and types in the .tflite file",
        reasons=_in_float(prepared),
        notes=(*notes, *((_DYNAMIC,) if _rounded_at_run_time(prepared) else ()), *_overflows(prepared)),
        left=_LEFT.get(prepared.precision, "ai-edge-quantizer leaves this kind of layer in float"),
    )
    if prepared.options.kernels != "xnnpack":
        return counted
    macs = {layer.name: layer.macs for layer in prepared.layers if layer.macs}
    return replace(counted, delegation=delegation(path, macs, layer_aliases(prepared.captured)))


def _in_float(prepared: Prepared) -> dict[str, str]:
    """Why layers are in float32 where float16 is a type of storage."""
    if prepared.precision is not Precision.FP16:
        return {}
    reason = "it has no weights to store in float16, and the file computes in float32"
    return {layer.name: _BEYOND if layer.weights else reason for layer in prepared.layers}


def _overflows(prepared: Prepared) -> Iterator[str]:
    """What overflows in an app that asks for float16 arithmetic; the file itself computes in float32."""
    plan = plan_float16(prepared) if prepared.precision is Precision.FP16 else Float16Plan()
    for name, why in plan.kept.items():
        if str(prepared.captured.origins.get(name, "")):
            yield f"in float16 arithmetic {name} fails: {why}"
