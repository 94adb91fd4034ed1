"""Recurrent layers as the products of their steps, for what has no recurrent kernel that multiplies in int8.

To NVIDIA's compiler a recurrent operator is a loop, whose body multiplies in float and is not fused with what surrounds
it; MIGraphX writes it out itself, behind where operands are quantized; OpenVINO, Core ML and oneDNN (in PyTorch's
compiler) have float operators alone, and ONNX Runtime has an int8 one of LSTMs. Written out here, two LSTM layers of 24
steps are 48 int8 products and 49 chains of NVIDIA's in place of 117 engine layers without an integer
(benchmarks/tensorrt_compiled.py). What stays float is not written out: a layer that `exclude` names keeps its operator.
Longer ones do, too: an engine with two layers for every step is slow to build.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.capture.recurrent import MOST_STEPS, steps_of, unroll_recurrent
from deploykit.capture.recurrent_cells import RECURRENT
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import Inputs, OpRule
from deploykit_calibration.op_kinds import kind_of, shape_of
from deploykit_calibration.patterns import matches
from deploykit_calibration.reuse import once

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit_calibration.prepared import Prepared

_QUANTIZED = (Precision.INT8, Precision.MIXED, Precision.FP8)


def written_out(captured: CapturedModel, request: Request, *, native: Collection[str] = ()) -> CapturedModel:
    """The model with its recurrent layers written out where products are quantized; else as it was captured.

    Args:
        native: kinds (`lstm`) that the target multiplies in int8 as they are.
    """
    layers = _to_write(captured, request, native) if request.precision in _QUANTIZED else []
    if not layers or _obstacle(layers):
        return captured
    names = frozenset(node.name for node in layers)
    # for each candidate of a search again
    return once("written out", (id(captured), names), lambda: unroll_recurrent(captured, names), held=captured)


def with_reasons(scheme: Scheme, captured: CapturedModel, request: Request, *, native: Collection[str] = ()) -> Scheme:
    """A scheme that says of recurrent layers which `written_out` left why they are in float, and what to do.

    Args:
        captured: what `written_out` gave.
        native: as there.
    """
    layers = _to_write(captured, request, native) if scheme.is_static else []
    why = _obstacle(layers)
    if not why:
        return scheme
    rule = OpRule(Inputs.FLOAT, reason=why + _elsewhere(request.toolchain))
    return replace(scheme, rules={**scheme.rules, **dict.fromkeys(map(kind_of, layers), rule)})


def _to_write(captured: CapturedModel, request: Request, native: Collection[str]) -> list[Node]:
    """The recurrent layers that shall be quantized and have no int8 kernel."""
    layers = [node for node in captured.graph_module.graph.nodes if node.target in RECURRENT]
    return [node for node in layers if kind_of(node) not in native and _is_asked_for(node, captured, request)]


def _is_asked_for(node: Node, captured: CapturedModel, request: Request) -> bool:
    """Whether patterns leave a layer to be quantized."""
    path = captured.origins[node.name].module_path
    asked, kept = (
        any(matches(pattern, node.name, path) for pattern in patterns)
        for patterns in (request.include, request.exclude)
    )
    return (asked or not request.include) and not kept


def _obstacle(layers: list[Node]) -> str:
    """Why layers are not written out; "" where they are."""
    steps = sum(map(steps_of, layers))
    if steps <= MOST_STEPS:
        return ""
    return (
        f"it is written out step by step for its int8, up to {MOST_STEPS} steps of all recurrent layers and directions"
        f" together, and these are {steps}: shorten the sequence"
    )


def _elsewhere(toolchain: str) -> str:
    """Who has what is not written out here, on the same machines; else the precision that keeps the layer as it is."""
    if toolchain in ("openvino", "aotinductor"):
        return ', or take target="x86-cpu" (LSTMs of any length) or "x86-cpu:tvm" (any static length)'
    if toolchain == "onnxruntime":
        return ', or take target="x86-cpu:tvm" (any static length)'
    return ', or take precision="fp16"'


def notes_on_steps(prepared: Prepared, cost: str, *, pays_from: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """What a user is told of an artifact whose recurrent layers are written out.

    Args:
        cost: what that costs with this target, measured, as a sentence.
        pays_from: by kind (`gru`), how many multiply-accumulates of a state a step must have to be faster than in the
            float operator; nothing is said of others.
    """
    graph, origins = prepared.reference.graph_module.graph, prepared.reference.origins
    left = {node.name for node in prepared.captured.graph_module.graph.nodes}
    layers = [node for node in graph.nodes if node.target in RECURRENT and node.name not in left]
    if not layers:
        return ()
    paths = {node: origins[node.name].module_path or node.name for node in layers}
    told = f"{_listed(paths.values())}: written out step by step for int8 ({sum(map(steps_of, layers))} steps); {cost}"
    small = {paths[node]: node for node in layers if _macs_of(node) < (pays_from or {}).get(kind_of(node), 0)}
    return (told, *(_too_small(path, node, pays_from or {}) for path, node in sorted(small.items())))


def _too_small(path: str, node: Node, pays_from: Mapping[str, int]) -> str:
    kind = kind_of(node)
    return (
        f"{path}: a step multiplies a state by {_macs_of(node):,} weights and rows, and {kind.upper()}s in int8 are"
        f" faster than the float operator from some {pays_from[kind]:,} on: exclude=[{path!r}] keeps that"
    )


def _listed(paths: Iterable[str]) -> str:
    return ", ".join(sorted(set(paths)))


def _macs_of(node: Node) -> int:
    """Multiply-accumulates of one step with its state, in one direction of the first layer."""
    arguments: tuple[Any, ...] = node.args
    rows = shape_of(arguments[0])[0 if arguments[8] else 1]
    gates, units = shape_of(arguments[2][1])
    return rows * gates * units
