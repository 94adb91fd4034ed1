"""An operator outside our table: PyTorch's own exporter writes it alone, and the result is spliced in.

Slow (some tenths of a second each) but as wide as `torch.onnx`; its public interface is used, and beside that its table
of translations is kept from one call to the next: PyTorch makes it anew each time, which took most of the time.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import onnx
import onnx.inliner
import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from deploykit.contract.quiet import kept_quiet
from deploykit_targets._onnx.ops.table import tensor_meta
from deploykit_targets._onnx.values import rename_reads, scope_names
from deploykit_targets._onnx.writer import GraphWriter

_INT64_INDICES = frozenset({"ScatterND", "GatherND"})
"""Operators whose indices the standard has in int64 only; PyTorch's exporter writes the type that the graph has."""


def export_alone(node: Node, opset: int, log: list[str]) -> tuple[onnx.ModelProto, list[Node]]:
    """One captured operator as a model of its own.

    Returns:
        The model, without local functions, and the captured nodes that are its inputs, in order.

    Raises:
        NotImplementedError: the operator takes sizes that are computed at run time.
        Exception: whatever the exporter raises; the caller adds operator and source line.
    """
    sources: dict[Node, Node] = {}
    graph = Graph()

    def as_input(source: Node) -> Node:
        if not isinstance(source.meta.get("val", tensor_meta(source)), torch.Tensor):
            raise NotImplementedError("no translation of our own, and it takes a size computed at run time")
        if source not in sources:
            sources[source] = graph.placeholder(f"arg{len(sources)}")
        return sources[source]

    arguments = pytree.tree_map_only(Node, as_input, (tuple(node.args), dict(node.kwargs)))
    call = graph.call_function(node.target, *arguments)  # type: ignore[arg-type]
    group = node.meta.get("val")
    parts = [call]
    if isinstance(group, (tuple, list)):
        parts = [graph.call_function(operator.getitem, (call, index)) for index in range(len(group))]
    graph.output(tuple(parts))
    module = GraphModule({}, graph)
    examples = tuple(_example(source) for source in sources)
    with kept_quiet(log), torch.no_grad(), _kept_translations():
        program = torch.export.export(module, examples, dynamic_shapes=tuple(_dynamic(source) for source in sources))
        exported = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, optimize=True)
        assert exported is not None
        model = onnx.inliner.inline_local_functions(exported.model_proto)
    return model, list(sources)


_TRANSLATIONS = threading.RLock()


@contextmanager
def _kept_translations() -> Iterator[None]:
    """Each call of PyTorch's exporter gets a copy of one table; where PyTorch has moved it, it makes its own."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        registry: Any = ONNXRegistry
        make = registry.__dict__["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return

    def copied(cls: Any, *given: Any, **named: Any) -> Any:
        kept = _translations(make.__get__(None, cls), given, tuple(named.items()))
        if not isinstance(getattr(kept, "functions", None), dict):
            return make.__get__(None, cls)(*given, **named)
        found = copy.copy(kept)
        found.functions = {target: list(translations) for target, translations in kept.functions.items()}
        return found

    with _TRANSLATIONS:
        registry.from_torchlib = classmethod(copied)
        try:
            yield
        finally:
            registry.from_torchlib = make


@cache
def _translations(make: Any, given: tuple[Any, ...], named: tuple[tuple[str, Any], ...]) -> Any:
    return make(*given, **dict(named))


def _example(source: Node) -> torch.Tensor:
    meta = tensor_meta(source)
    sizes = [size if isinstance(size, int) else max(2, int(size)) for size in meta.shape]
    return torch.zeros(sizes, dtype=meta.dtype)


def _dynamic(source: Node) -> dict[int, Any]:
    shape = tensor_meta(source).shape
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if not isinstance(size, int)}


def splice(writer: GraphWriter, model: onnx.ModelProto, inputs: list[Any], *, multiple: bool) -> str | tuple[str, ...]:
    """Copy the nodes of a small model into the graph under construction.

    Args:
        inputs: ONNX values for the model's inputs, in order.
        multiple: whether the captured operator gives a group of tensors.

    Returns:
        The value(s) that stand for the model's outputs.
    """
    names: dict[str, str] = {"": ""}
    names.update(zip((value.name for value in model.graph.input), inputs, strict=True))
    scope, _ = writer.scope
    for tensor in model.graph.initializer:
        names[tensor.name] = writer.copied_initialiser(tensor, f"{scope}.{tensor.name}")
    for node in model.graph.node:
        outputs = [names.setdefault(out, writer.reserve(f"{scope}.{out}")) if out else "" for out in node.output]
        scope_names(node, lambda name: writer.reserve(f"{scope}.{name}"))
        rename_reads(node, names)
        if node.op_type in _INT64_INDICES:
            node.input[1] = writer.op("Cast", node.input[1], to=onnx.TensorProto.INT64)
        writer.copy(node, list(node.input), outputs)
    results = tuple(names[value.name] for value in model.graph.output)
    return results if multiple else results[0]
