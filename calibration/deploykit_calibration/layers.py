"""The layers of a captured float model: what every report of achieved precision counts, quantized or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch.fx import Node

from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.precision import Precision
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.op_kinds import ACTIVATIONS, LAYERS, MACS
from deploykit_calibration.placement import LayerPlacement

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.prepared import Prepared

# runtimes fuse and rename them, also where one of them is an outer product
_ELEMENTWISE = LAYERS - MACS | {"pow", "square"}


def layer_aliases(captured: CapturedModel) -> dict[str, str]:
    """Other names under which a runtime's graph may show a layer -> name of that layer.

    Runtimes fuse a layer with the activation behind it and keep either name; the last one may take the output's name.
    """
    view = GraphView.of(captured)
    found: dict[str, str] = {}
    for op in view.ops():
        source = op.args[0] if op.args else None
        if view.kinds[op] in ACTIVATIONS and isinstance(source, Node):
            found[op.name] = found.get(source.name, source.name)
    (output,) = captured.graph_module.graph.find_nodes(op="output")
    for spec, node in zip(captured.outputs, output.args[0], strict=True):
        if isinstance(node, Node):
            found.setdefault(spec.name, found.get(node.name, node.name))
    return found


def shown_names(prepared: Prepared) -> set[str]:
    """All names under which a runtime's graph may show the layers: their own, and `layer_aliases`."""
    return {*layer_aliases(prepared.captured), *(layer.name for layer in prepared.layers)}


def reconcile(
    prepared: Prepared,
    executed: Mapping[str, str],
    *,
    source: str,
    reasons: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    left: str = "",
) -> Achieved:
    """Join what was planned with what the produced file really computes in.

    Args:
        executed: precision as counted in the file, by the name of a layer or an alias of it; what stands under the
            name itself counts. A layer with multiply-accumulates that is not there is `unknown`; others are taken as
            planned, because runtimes fuse and rename them.
        source: where `executed` was read.
        reasons: layer name to why it is not as requested, where the placement does not say it.
        left: why this target leaves a layer in another precision, where neither placement nor `reasons` says it.
    """
    precision, aliases = prepared.precision, layer_aliases(prepared.captured)
    known = {aliases[name]: found for name, found in executed.items() if name in aliases} | dict(executed)
    why = reasons or {}
    layers = [_layer(precision, each, known.get(each.name), why.get(each.name, "")) for each in prepared.layers]
    explained = [_explained(precision, each, left) for each in layers]
    return Achieved.count(precision.value, explained, source=source, notes=notes)


def _layer(precision: Precision, layer: LayerPlacement, executed: str | None, reason: str) -> LayerAchieved:
    planned = "float32" if layer.precision == "float" else layer.precision
    actual = executed or ("unknown" if layer.macs and layer.kind not in _ELEMENTWISE else planned)
    why = layer.reason or reason
    if not layer.counted:
        actual, why = "unknown", f"deploykit does not know how often {layer.kind} multiplies; please report it"
    elif actual == "unknown":
        why = why or "not found in the runtime's graph"
    elif precision.row.counts_as(actual):
        why = ""
    elif layer.precision not in ("float", actual):
        why = why or f"placed as {planned}, and the runtime computes it in {actual}"
    return LayerAchieved(
        name=layer.name,
        module_path=layer.module_path,
        op=layer.kind,
        precision=actual,
        macs=layer.macs,
        weights=layer.weights,
        reason=why,
        by_request=layer.by_request,
        counted=layer.counted,
    )


def _explained(precision: Precision, layer: LayerAchieved, left: str) -> LayerAchieved:
    """A layer that is not in the precision has a reason, whoever is to blame."""
    if layer.reason or precision.row.counts_as(layer.precision):
        return layer
    if not layer.macs and not layer.weights and precision.row.ranges != "static" and not precision.row.is_whole:
        return replace(layer, reason=f"{precision} is of layers with weights, and it has none")
    return replace(layer, reason=left or f"the runtime computes it in {layer.precision}")
