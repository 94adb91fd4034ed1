"""From the captured graph to one safetensors file: the weights, and the program as JSON in its metadata.

Refuses every operator that is not in `OPS`, naming it with its module and source line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors.numpy import save
from torch.fx import Node

from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.errors import ConversionError
from deploykit.contract.precision import Precision
from deploykit.plugin.target import Payload
from deploykit_calibration.products import mac_count, weight_count
from deploykit_numpy.formats import pack
from deploykit_numpy.session import ENTRY

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared


aten = torch.ops.aten
OPS = {aten.linear.default: "linear", aten.relu.default: "relu", aten.gelu.default: "gelu", aten.tanh.default: "tanh"}


@dataclass
class _Program:
    """What is written: steps in execution order, and the tensors they name."""

    precision: Precision
    steps: list[dict[str, object]] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)  # tensor of 12 bits -> its columns
    layers: list[LayerAchieved] = field(default_factory=list)


def convert(prepared: Prepared, folder: Path) -> Payload:
    """Write the payload of a prepared model.

    Raises:
        ConversionError: an operator is not in `OPS`.
    """
    program = _Program(prepared.precision)
    graph = prepared.captured.graph_module.graph
    for node in graph.nodes:
        if node.op == "get_attr":
            program.tensors[node.name] = _constant(prepared, node)
        elif node.op == "call_function":
            _add_step(prepared, program, node)
    inputs = {node.target: node.name for node in graph.nodes if node.op == "placeholder"}
    results = cast("tuple[Node, ...]", graph.output_node().args[0])
    outputs = {spec.name: node.name for spec, node in zip(prepared.captured.outputs, results, strict=True)}
    found = {"inputs": inputs, "outputs": outputs, "steps": program.steps, "packed": program.packed}
    text = json.dumps(found, sort_keys=True)
    (folder / ENTRY).write_bytes(save(program.tensors, metadata={"program": text}))
    return Payload(
        entry=ENTRY,
        achieved=Achieved.count(prepared.precision.value, program.layers, source="the program's steps"),
        tool_versions={"numpy": np.__version__, "torch": str(torch.__version__)},
    )


def _constant(prepared: Prepared, node: Node) -> np.ndarray:
    owner, _, name = str(node.target).rpartition(".")
    return np.ascontiguousarray(getattr(prepared.captured.graph_module.get_submodule(owner), name).detach().numpy())


def _add_step(prepared: Prepared, program: _Program, node: Node) -> None:
    op = OPS.get(node.target)  # type: ignore[call-overload]  # a node's target is any callable; the table has overloads
    if op is None or node.kwargs:
        origin = prepared.captured.origins[node.name]
        raise ConversionError(
            f"the numpy toolchain has no {origin}",
            hint=f"it has {', '.join(sorted(OPS.values()))}; export to another target",
        )
    arguments = [argument.name for argument in node.args if isinstance(argument, Node)]
    program.steps.append({"op": op, "arguments": arguments, "result": node.name})
    if op == "linear":
        program.layers.append(_layer(prepared, program, node))


def _layer(prepared: Prepared, program: _Program, node: Node) -> LayerAchieved:
    """Count a linear layer; its weight is rounded where that was asked for and it is a constant."""
    weight = node.args[1]
    name = weight.name if isinstance(weight, Node) else ""
    precision = "float32"
    placed = next(layer for layer in prepared.layers if layer.name == node.name)
    if placed.precision != "float":
        precision = _round(program, name)
    module_path = prepared.captured.origins[node.name].module_path
    macs, weights = mac_count(node) or 0, weight_count(node)
    return LayerAchieved(node.name, module_path, "linear", precision, macs, weights, placed.reason, placed.by_request)


def _round(program: _Program, name: str) -> str:
    """Round a weight as the precision's row says; returns what it is counted in."""
    scheme = program.precision.row.weights
    counted = "int8" if scheme.bits == 8 else f"int{scheme.bits}-weights"
    if f"{name}.scale" in program.tensors:  # of two layers: it has been rounded for the first one
        return counted
    rounded, program.tensors[f"{name}.scale"] = quantize_rows(program.tensors[name], scheme.quant_max)
    if scheme.bits == 8:
        program.tensors[name] = rounded.astype(np.int8)
    else:
        program.tensors[name], program.packed[name] = pack(rounded), rounded.shape[1]
    return counted


def quantize_rows(weight: np.ndarray, quant_max: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric integers with one scale per row.

    Args:
        weight: float32 (out, in).
        quant_max: the largest integer; its negative is the smallest.

    Returns:
        int16 (out, in) from -quant_max to quant_max, and scales float32 (out,) > 0 with `weight ~ q * scale`.
    """
    scale = np.maximum(np.abs(weight).max(axis=1) / quant_max, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scale[:, None]), -quant_max, quant_max).astype(np.int16), scale
