"""From an ExportedProgram to a flat graph with plain constants.

PyTorch keeps weights as extra placeholders and wraps regions (autocast, grad mode) in submodules. Here weights become
get_attr nodes, such regions are inlined (the graph is float32 and has no gradients), and bookkeeping calls go away.
Branches and loops inside the graph are refused.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from deploykit.capture.calls import stored
from deploykit.capture.derivation import Derivation, Own
from deploykit.capture.editor import PROVENANCE, Call, Editor
from deploykit.capture.origins import origin_of
from deploykit.contract.errors import CaptureError

_INLINED = {"wrap_with_set_grad_enabled": 2, "wrap_with_autocast": 5}
"""Higher-order op -> index of its first tensor argument; the submodule stands just before."""

_LOOPS = ("while_loop", "scan", "map")
_IN_PLACE_OF_LOOPS = (
    "write a Python loop of a fixed number of steps, which is unrolled, or export the body and loop over it"
)
_IN_PLACE_OF_BRANCHES = "compute both branches and choose by torch.where, or export each as a model of its own"

_BOOKKEEPING = (
    "_assert_async",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


def unlift(program: torch.export.ExportedProgram, names: Sequence[str]) -> tuple[Editor, list[int]]:
    """Rebuild the program's graph with weights as get_attr nodes.

    Args:
        names: a name for every user input, tensors and others alike, in order.

    Returns:
        the graph under an editor, and the positions of the program's outputs that are tensors.

    Raises:
        CaptureError: control flow inside the graph, or no tensor among the outputs.
    """
    graph, constants = fx.Graph(), _constants_of(program)
    own: dict[str, Derivation] = {}
    env: dict[Call, Any] = {}
    user_inputs = iter(names)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    weights = {}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            env[node] = _placeholder(graph, node, next(user_inputs))
        else:
            weights[node] = str(spec.target)
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                own[weights[node]] = Own(weights[node])
    for node, target in weights.items():
        env[node] = graph.create_node("get_attr", target)
        env[node].meta["val"] = node.meta["val"]
    results = _inline(program.graph_module, graph, env, constants)
    kept = _output(graph, program, results)
    return Editor(graph, constants, own), kept


def _placeholder(graph: fx.Graph, node: Call, name: str) -> Any:
    """A placeholder for a tensor; the value itself for anything else (it is baked into the program)."""
    val = node.meta.get("val")
    if not isinstance(val, Tensor):
        return val
    new = graph.create_node("placeholder", name, name=name)
    new.meta["val"] = val
    return new


def _constants_of(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Detached weights and buffers by name; parameters stay `nn.Parameter`s that need no gradient."""
    constants: dict[str, Tensor] = {}
    for name, value in {**program.state_dict, **program.constants}.items():
        if isinstance(value, nn.Parameter):
            constants[name] = nn.Parameter(value.detach(), requires_grad=False)
        elif isinstance(value, Tensor):
            constants[name] = value.detach()
    return constants


def _inline(source: fx.GraphModule, graph: fx.Graph, env: dict[Call, Any], constants: dict[str, Tensor]) -> Any:
    """Copy the calls of a graph (its placeholders are in `env`); returns what its output node returns."""
    for node in source.graph.nodes:
        if node.op == "call_function":
            name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                env[node] = _inline_region(source, node, graph, env, constants)
            elif name not in _BOOKKEEPING:
                env[node] = _copy(graph, node, env)
        elif node.op == "get_attr" and node not in env:
            value = stored(source, str(node.target))
            if isinstance(value, Tensor):
                env[node] = _attribute_node(graph, node, value, constants)
        elif node.op == "output":
            return fx.map_arg(node.args[0], lambda n: env[n])
    return ()


def _copy(graph: fx.Graph, node: Call, env: dict[Call, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
    if node.target is operator.getitem and isinstance(args[0], tuple | list):
        return args[0][args[1]]  # one result of a region that was inlined
    new = graph.create_node("call_function", node.target, args, kwargs)
    new.meta.update({key: node.meta[key] for key in (*PROVENANCE, "val") if key in node.meta})
    return new


def _inline_region(
    source: fx.GraphModule, node: Call, graph: fx.Graph, env: dict[Call, Any], constants: dict[str, Tensor]
) -> Any:
    """Copy the body of a region in place of the call; refuse branches and loops."""
    first = _INLINED.get(str(node.target))
    if first is None:
        raise CaptureError(
            f"the model has control flow inside its graph: {origin_of(node)}",
            hint=_IN_PLACE_OF_LOOPS if any(loop in str(node.target) for loop in _LOOPS) else _IN_PLACE_OF_BRANCHES,
        )
    body = source.get_submodule(str(node.args[first - 1].target))
    assert isinstance(body, fx.GraphModule)
    arguments = fx.map_arg(node.args[first:], lambda n: env[n])
    inner = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), arguments, strict=True))
    return _inline(body, graph, inner, constants)


def _attribute_node(graph: fx.Graph, node: Call, value: Tensor, constants: dict[str, Tensor]) -> Call:
    name, count = str(node.target), 0
    while name in constants and constants[name] is not value:
        count += 1
        name = f"{node.target}_{count}"
    constants[name] = value.detach()
    new = graph.create_node("get_attr", name)
    new.meta["val"] = node.meta.get("val", value)
    return new


def _output(graph: fx.Graph, program: torch.export.ExportedProgram, results: Any) -> list[int]:
    """Close the graph with the user's tensor outputs; their positions among all of the user's outputs."""
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    user = [r for r, kind in zip(results, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
    kept = [i for i, r in enumerate(user) if isinstance(r, fx.Node) and isinstance(r.meta.get("val"), Tensor)]
    if not kept:
        raise CaptureError("the model returns no tensor", hint="return a tensor, a tuple or a dict of tensors")
    graph.output(tuple(user[i] for i in kept))
    return kept
