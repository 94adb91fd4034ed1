"""What the tests of `_onnx` share: a flat captured model by plain torch.export, and running ONNX in ONNX Runtime."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch.utils import _pytree as pytree

from deploykit.contract.host import this_host
from deploykit.contract.tensors import TensorSpec
from deploykit_targets._onnx.own_weights import own_weights
from deploykit_targets._onnx.runtime import EXACT
from deploykit_targets._onnx.vnni import needs_exact


@dataclass
class Place:
    """Stands in for `deploykit.capture.Origin`."""

    module_path: str
    op: str
    source: str | None = None


@dataclass
class Flat:
    """Stands in for `CapturedModel`: what lowering reads of it."""

    graph_module: torch.fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example_inputs: tuple[torch.Tensor, ...]
    origins: dict[str, Place] = field(default_factory=dict)


def spec_of(node: torch.fx.Node, name: str) -> TensorSpec:
    value = node.meta["val"]
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(name, shape, str(value.dtype).removeprefix("torch."))


def flat(model: torch.nn.Module, *args: torch.Tensor, dynamic: Any = None) -> Flat:
    """Export a model and flatten its graph: tensors in, a tuple of tensors out, constants as attributes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about recurrent layers' cached weights
        module = torch.export.export(model.eval(), args, dynamic_shapes=dynamic).module()
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module":  # the guards on input shapes
            graph.erase_node(node)
    (output,) = graph.find_nodes(op="output")
    results = pytree.tree_leaves(output.args[0])
    output.args = (tuple(results),)
    graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    names = ["output"] if len(results) == 1 else [f"output_{index}" for index in range(len(results))]
    return Flat(
        module,
        tuple(spec_of(node, node.name) for node in graph.find_nodes(op="placeholder")),
        tuple(spec_of(node, name) for node, name in zip(results, names, strict=True)),
        args,
        {node.name: Place(_module_path(node), str(node.target)) for node in graph.nodes if node.op == "call_function"},
    )


def _module_path(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    return str(list(stack.values())[-1][0])


def run_onnx(model: onnx.ModelProto, *args: torch.Tensor) -> list[np.ndarray]:
    """Outputs of a model in ONNX Runtime, one thread, all optimisations; sums are exact on any CPU, as in artifacts."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if needs_exact(this_host()):
        model = copy.deepcopy(model)
        own_weights(model.graph)
        options.add_session_config_entry(*EXACT)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: arg.numpy() for value, arg in zip(session.get_inputs(), args, strict=True)}
    return list(session.run(None, feeds))


def sqnr_db(want: Any, got: Any) -> float:
    """Signal over error in dB; infinite when equal."""
    signal, error = np.asarray(want, np.float64), np.asarray(want, np.float64) - np.asarray(got, np.float64)
    power = float((error**2).sum())
    return float("inf") if power == 0 else float(10 * np.log10((signal**2).sum() / power))
