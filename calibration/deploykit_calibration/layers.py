"""The layers of a captured float model: what every report of achieved precision counts, quantized or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch.fx import Node

from deploykit.achieved import Achieved, LayerAchieved
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.op_kinds import ACTIVATIONS
from deploykit_calibration.placement import LayerPlacement, describe_layers
from deploykit_calibration.plan import Plan

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.precision import Precision


def float_layers(captured: CapturedModel) -> tuple[LayerPlacement, ...]:
    """Every layer of the float graph in execution order, with its multiply-accumulates and weights."""
    return describe_layers(captured, GraphView(captured.graph_module.graph), Plan())


def layer_aliases(captured: CapturedModel) -> dict[str, str]:
    """Other names under which a runtime's graph may show a layer -> name of that layer.

    Runtimes fuse a layer with the activation behind it and keep either name; the last one may take the output's name.
    """
    view = GraphView(captured.graph_module.graph)
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


def reconcile(
    precision: Precision,
    layers: Iterable[LayerPlacement],
    executed: Mapping[str, str],
    *,
    source: str,
    reasons: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    placed: str = "int8",
) -> Achieved:
    """Join what was planned with what the produced file really computes in.

    Args:
        precision: requested.
        layers: from a placement, or from `float_layers`.
        executed: layer name to precision as counted in the file. A layer with multiply-accumulates that is not there is
            `unknown`; others are taken as planned, because runtimes fuse and rename them.
        source: where `executed` was read.
        reasons: layer name to why it is not as requested, where the placement does not say it.
        placed: what layers with q/dq nodes are to compute in: `fp8` where the target writes E4M3 at their places.
    """
    found = (_layer(layer, executed.get(layer.name), (reasons or {}).get(layer.name, ""), placed) for layer in layers)
    return Achieved.count(precision.value, found, source=source, notes=notes)


def _layer(layer: LayerPlacement, executed: str | None, reason: str, placed: str) -> LayerAchieved:
    planned = placed if layer.precision == "int8" else "float32"
    actual = executed or ("unknown" if layer.macs else planned)
    why = layer.reason or reason
    if actual == "unknown":
        why = why or "not found in the runtime's graph"
    elif planned == placed and actual != placed:
        why = f"placed as {placed}, and the runtime computes it in {actual}"
    return LayerAchieved(layer.name, layer.module_path, layer.kind, actual, layer.macs, layer.weights, why)
