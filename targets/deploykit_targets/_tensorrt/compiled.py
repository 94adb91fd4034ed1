"""Evidence `compiled`: what NVIDIA's compiler said of an export, as achieved precision, findings and one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.errors import ConversionError
from deploykit.contract.precision import Evidence, Precision
from deploykit_targets._on_device.portable import achieved_of
from deploykit_targets._on_device.target import COMPILED
from deploykit_targets._onnx.runtime import captured_name
from deploykit_targets._tensorrt.compiler import (
    Compiled,
    NotCompiled,
    compile_engine,
    compile_file,
    is_installed,
    not_installed,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import fx

    from deploykit.contract.devices import Device
    from deploykit.plugin.target import Payload
    from deploykit_calibration.prepared import Prepared
    from deploykit_targets._tensorrt.listing import EngineLayer

_WORDS = {
    **{"int8": "Int8", "fp8": "FP8", "float16": "Half", "bfloat16": "BFloat16", "float32": "Float"},
    **{"int8-weights": "Half from Int8 weights", "int4-weights": "Half from Int4 weights"},
}
_FLOATS = frozenset({"float32", "float16", "bfloat16"})
_NODE = re.compile(r"\(node \d+: \w* ?([^)]*)\)")
_QUOTED = re.compile(r"'([^']+)'")


def prove(prepared: Prepared, folder: Path, payload: Payload) -> Payload:
    """Have the compiler read what was converted, and count what it says.

    Raises:
        ConversionError: it refuses the file; names the ONNX node, the module and the source line.
    """
    try:
        found = compile_file(folder, prepared.device)
    except ConversionError as error:
        raise _located(error, prepared) from error
    if isinstance(found, NotCompiled):
        return replace(payload, achieved=_noted(payload.achieved, found.reason))
    return with_evidence(payload, found, prepared.device)


def prove_ahead(prepared: Prepared, folder: Path, payload: Payload, archs: Sequence[str]) -> Payload:
    """Compile the engine that the artifact ships, and count what the compiler says of it.

    Without the compiler here, the payload is what it was, with a note.

    Args:
        archs: the architectures that the one engine is for, such as `sm_86`.
    Raises:
        ConversionError: the compiler refuses the file; names the ONNX node, the module and the source line.
    """
    if not is_installed():
        return replace(payload, achieved=_noted(payload.achieved, not_installed("tensorrt-rtx")))
    own = [prepared.device.arch, *(arch for arch in archs if arch != prepared.device.arch)]
    try:
        found = compile_engine(folder, own)
    except ConversionError as error:
        raise _located(error, prepared) from error
    return with_evidence(payload, found, prepared.device)


def with_evidence(payload: Payload, found: Compiled, device: Device) -> Payload:
    """The payload with what the compiler said in place of what the file asks for."""
    achieved = counted(payload.achieved, found)
    summary, note = summary_of(found.layers, wanted_of(payload.achieved)), note_of(found, device)
    facts = {
        "compiler": f"TensorRT for RTX {found.version}",
        "arch": found.arch,
        "device_arch": device.arch,
        "summary": summary,
        "findings": list(findings_of(payload.achieved, achieved)),
        "note": note,
        "layers": [_listed(layer) for layer in found.layers],
    }
    notes = (*payload.achieved.notes, summary, note)
    return replace(
        payload,
        achieved=replace(achieved, notes=notes, evidence=Evidence.COMPILED),
        tool_versions={**payload.tool_versions, "tensorrt_rtx": found.version},
        metadata={**payload.metadata, COMPILED: facts},
    )


def counted(planned: Achieved, found: Compiled) -> Achieved:
    """What the engine computes each captured layer in."""
    source = f"the engine's layers as NVIDIA's compiler lists them (TensorRT for RTX {found.version}, {found.arch})"
    achieved = achieved_of(planned, [layer.as_report() for layer in found.layers], source=source)
    before = {layer.name: layer for layer in planned.layers}
    layers = (_explained(layer, before[layer.name]) for layer in achieved.layers)
    return replace(achieved, layers=tuple(_as_asked(layer, achieved) for layer in layers))


def _as_asked(layer: LayerAchieved, achieved: Achieved) -> LayerAchieved:
    """Without the reason why a layer is otherwise, where the compiler made it as asked all the same."""
    return replace(layer, reason="") if layer.reason and achieved.is_as_asked(layer.precision) else layer


def _explained(layer: LayerAchieved, before: LayerAchieved) -> LayerAchieved:
    """Why a layer is not as the file asks; what has no products is a step of a chain, which computes in float."""
    if layer.precision in (before.precision, "unknown") or (before.reason and before.precision in _FLOATS):
        return layer
    if not layer.macs:
        return replace(layer, reason=before.reason or f"a step of a fused chain, which computes in {layer.precision}")
    other = f"placed in {before.precision}, and the compiler computes it in {layer.precision}"
    return replace(layer, reason=f"{before.reason}; {other}" if before.reason else other)


def tf32_gate(prepared: Prepared) -> tuple[tuple[str, ...], float | None]:
    """What float32 means on a GPU whose builder may use TF32, its default: its mantissa is float16's.

    Returns:
        Notes for the reader, and the SQNR in dB from which golden outputs are reproduced; None for the precision's.
    """
    if prepared.precision is not Precision.FP32 or "tf32" not in prepared.device.peak_tops:
        return (), None
    gate = Precision.FP16.row.min_sqnr_db
    return ("float32 layers may run in TF32 on the device: golden outputs are gated as those of float16",), gate


def wanted_of(planned: Achieved) -> str:
    """The type that most multiply-accumulates were written in."""
    return max(planned.macs, key=lambda name: planned.macs[name], default="float32")


def summary_of(layers: Sequence[EngineLayer], wanted: str) -> str:
    """One line: how many of the layers that multiply do so in `wanted`, and what surrounds them."""
    multiply = [layer for layer in layers if layer.role == "multiplies"]
    as_asked = sum(layer.precision == wanted for layer in multiply)
    reformats = sum(layer.is_reformat for layer in layers)
    chains = sum(layer.is_chain for layer in layers) - reformats
    word = _WORDS.get(wanted, wanted)
    return (
        f"NVIDIA's compiler: {as_asked} of {len(multiply)} layers in {word}, "
        f"{chains} fused chain{'' if chains == 1 else 's'}, {reformats} reformat{'' if reformats == 1 else 's'}"
    )


def note_of(found: Compiled, device: Device) -> str:
    """What the evidence is of, and what it is not."""
    near = f", the nearest to the device's {device.arch} that it offers" if found.arch != device.arch else ""
    shared = f", in one engine with {', '.join(found.others)}" if found.others else ""
    return f"compiled for {found.arch}{shared}{near} (TensorRT for RTX {found.version}); nothing was run on the device"


def findings_of(planned: Achieved, achieved: Achieved) -> Iterator[str]:
    """Layers with products that the file asks in a narrow type for, and the compiler computes in a wider one."""
    asked = {layer.name: layer.precision for layer in planned.layers}
    for layer in achieved.layers:
        if layer.macs and layer.precision in _FLOATS and asked[layer.name] not in _FLOATS:
            yield f"{layer.module_path or layer.name}: {layer.reason}"


def _noted(achieved: Achieved, line: str) -> Achieved:
    return replace(achieved, notes=(*achieved.notes, line))


def _listed(layer: EngineLayer) -> dict[str, Any]:
    return {"name": layer.name, "type": layer.type, "precision": layer.precision, "nodes": list(layer.nodes)}


def _located(error: ConversionError, prepared: Prepared) -> ConversionError:
    """The error with module path and source line of the node that the compiler named."""
    from deploykit.capture.origins import origin_of

    nodes = {node.name: node for node in prepared.captured.graph_module.graph.nodes if node.op == "call_function"}
    named = _named(error.message, nodes)
    hint = "replace the operation, or keep the layer in float (exclude=)"
    if named is None:
        return ConversionError(f"NVIDIA's compiler refuses the model: {error.message}", hint=hint)
    message = f"NVIDIA's compiler refuses {named.name} ({origin_of(named)}): {error.message}"
    return ConversionError(message, hint=hint)


def _named(message: str, nodes: Mapping[str, fx.Node]) -> fx.Node | None:
    for name in (*_NODE.findall(message), *_QUOTED.findall(message)):
        if known := captured_name(name, nodes):
            return nodes[known]
    return None
