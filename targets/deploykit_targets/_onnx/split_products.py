"""One product whose columns are cut apart for attention -> one product for each part.

NVIDIA's compiler (TensorRT for RTX 1.7) moves the cuts of a joined query-key-value projection into its weight. Where
that is behind a DequantizeLinear it then multiplies in float, and dequantizes the weight in every run. Products that
are written apart stay in int8, and it joins them again to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from deploykit_targets._onnx.onnx_view import OnnxView, attribute

# What may stand between a part and the product of two activations that it is for.
_BETWEEN = frozenset(
    """Reshape Transpose Squeeze Unsqueeze Mul Add Sub Neg Div Concat Slice Gather Split Cast Softmax Expand Identity
    QuantizeLinear DequantizeLinear LayerNormalization Sqrt ReduceMean Pow Reciprocal""".split()
)


@dataclass(frozen=True)
class _Part:
    """Columns of a product, by index, which `node` cuts out, and the axes that they then get."""

    node: NodeProto
    columns: np.ndarray
    shape: tuple[int, ...] = ()
    perm: tuple[int, ...] = ()


def split_products(model: onnx.ModelProto) -> None:
    """Write products of dequantized weights that attention cuts apart as one product for each part; in place."""
    view = OnnxView(model)
    made: dict[int, list[NodeProto]] = {}
    gone: set[int] = set()
    for product in (node for node in view.nodes if node.op_type == "MatMul"):
        dequantizer = _dequantizer(view, product)
        if dequantizer is None:
            continue
        columns = len(view.constant(dequantizer.input[1]))  # type: ignore[arg-type]
        end = _with_bias(view, product, columns)
        value = (end or product).output[0]
        parts = [] if value in view.outputs else _parts(view, value, columns)
        if len(parts) > 1 and all(_is_for_attention(view, part.node.output[0]) for part in parts):
            written = (_product(model, view, product, dequantizer, end, each) for each in enumerate(parts))
            made[id(product)] = [node for nodes in written for node in nodes]
            gone |= {id(part.node) for part in parts}
    if made:
        _store(
            model.graph,
            [each for node in view.nodes if id(node) not in gone for each in (*made.get(id(node), ()), node)],
        )


def _dequantizer(view: OnnxView, product: NodeProto) -> NodeProto | None:
    """What dequantizes the weight of a product, one scale for each column; None where nothing does."""
    node = view.producers.get(product.input[1])
    if node is None or node.op_type != "DequantizeLinear" or attribute(node, "axis", 1) != 1:
        return None
    weight, scale = view.constant(node.input[0]), view.constant(node.input[1])
    if weight is None or weight.ndim != 2 or scale is None or scale.shape != weight.shape[1:]:
        return None
    return node


def _with_bias(view: OnnxView, product: NodeProto, columns: int) -> NodeProto | None:
    """The addition of a constant of one row that alone reads a product."""
    readers = view.consumers[product.output[0]]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    (other,) = [name for name in readers[0].input if name != product.output[0]] or [""]
    bias = view.constant(other)
    return readers[0] if bias is not None and bias.shape == (columns,) else None


def _parts(view: OnnxView, value: str, columns: int) -> list[_Part]:
    """How the last axis of a value is cut apart; empty where anything reads it in another way."""
    readers = view.consumers[value]
    if len(readers) == 1 and readers[0].op_type == "Reshape":
        return _selected(view, readers[0], columns)
    parts = []
    for reader in readers:
        bounds = _sliced(view, reader) if reader.op_type == "Slice" else None
        if bounds is None:
            return []
        parts.append(_Part(reader, np.arange(*bounds)))
    return parts


def _sliced(view: OnnxView, node: NodeProto) -> tuple[int, int] | None:
    """First and last column (exclusive) of a slice along the last axis."""
    found = [view.constant(name) for name in node.input[1:]]
    if len(found) < 3 or any(values is None or values.size != 1 for values in found):
        return None
    start, stop, axis, *step = (int(values.ravel()[0]) for values in found if values is not None)
    last = {-1, view.ranks.get(node.input[0], 0) - 1}
    return (start, stop) if axis in last and step in ([], [1]) and 0 <= start < stop else None


def _selected(view: OnnxView, reshape: NodeProto, columns: int) -> list[_Part]:
    """Parts that are made by Reshape, Transpose or none, and a Gather of each index of one axis."""
    wanted = view.constant(reshape.input[1])
    shape = () if wanted is None else tuple(int(size) for size in wanted)
    first = next((index for index in range(len(shape)) if prod(shape[index:]) == columns), None)
    if first is None or any(size < 1 for size in shape[first:]):
        return []
    value, perm = reshape.output[0], tuple(range(len(shape)))
    readers = view.consumers[value]
    if len(readers) == 1 and readers[0].op_type == "Transpose":
        perm = tuple(next(entry.ints for entry in readers[0].attribute if entry.name == "perm"))
        readers = view.consumers[readers[0].output[0]]
    parts, numbers = [], np.arange(columns).reshape(shape[first:])
    for reader in readers:
        index = view.constant(reader.input[1]) if reader.op_type == "Gather" else None
        axis = perm[attribute(reader, "axis", 0)]
        if index is None or index.ndim or axis < first:
            return []
        kept = (*shape[:axis], *shape[axis + 1 :])
        order = tuple(each - (each > axis) for each in perm if each != axis)
        parts.append(_Part(reader, numbers.take(int(index), axis - first).ravel(), kept, order))
    return parts


def _is_for_attention(view: OnnxView, value: str) -> bool:
    """Whether a product of two activations reads a value, seen through what may stand between."""
    seen, left = set(), [value]
    while left:
        current = left.pop()
        if current in seen:
            continue
        seen.add(current)
        for reader in view.consumers[current]:
            if reader.op_type == "MatMul" and not any(view.is_constant(name) for name in reader.input):
                return True
            if reader.op_type in _BETWEEN:
                left.extend(reader.output)
    return False


def _product(
    model: onnx.ModelProto,
    view: OnnxView,
    product: NodeProto,
    dequantizer: NodeProto,
    end: NodeProto | None,
    numbered: tuple[int, _Part],
) -> Iterator[NodeProto]:
    """The nodes of one part, the last of which gives what the part's node gave."""
    index, part = numbered
    stem = product.name.partition(".")[0]

    def cut(role: str, source: str, change: Callable[[np.ndarray], np.ndarray]) -> str:
        values, name = view.constant(source), f"{stem}.{role}_part_{index}"
        assert values is not None
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(change(values)), name))
        return name

    def node(kind: str, *inputs: str, last: bool = False, **attributes: Any) -> NodeProto:
        name = f"{stem}.{kind.lower()}_part_{index}"
        output = part.node.output[0] if last else name
        written = helper.make_node(kind, list(inputs), [output], name=name, **attributes)
        written.metadata_props.extend(product.metadata_props)
        return written

    weight = [cut("weight", dequantizer.input[0], lambda values: values[:, part.columns])]
    for role, name in zip(("scale", "zero_point"), dequantizer.input[1:], strict=False):
        weight.append(cut(role, name, lambda values: values[part.columns]))
    yield node("DequantizeLinear", *weight, axis=1)
    dequantized = f"{stem}.dequantizelinear_part_{index}"
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("MatMul", [product.input[0], dequantized], {})]
    if end is not None:
        (bias,) = [name for name in end.input if name != product.output[0]]
        steps.append(("Add", [cut("bias", bias, lambda values: values[part.columns])], {}))
    if part.shape:
        shape = f"{stem}.shape_part_{index}"
        model.graph.initializer.append(numpy_helper.from_array(np.array(part.shape, np.int64), shape))
        steps += [("Reshape", [shape], {}), ("Transpose", [], {"perm": list(part.perm)})]
    value = ""
    for position, (kind, inputs, attributes) in enumerate(steps):
        written = node(kind, *([value] if value else []), *inputs, last=position == len(steps) - 1, **attributes)
        yield written
        value = written.output[0]


def _store(graph: onnx.GraphProto, nodes: list[NodeProto]) -> None:
    """Store the nodes without those that nothing reads, and the constants that were read by them alone."""
    outputs = {info.name for info in graph.output}
    while True:
        read = outputs | {name for node in nodes for name in _inputs(node)}
        kept = [node for node in nodes if any(name in read for name in node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    del graph.node[:]
    graph.node.extend(nodes)
    constants: list[TensorProto] = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _inputs(node: NodeProto) -> Iterator[str]:
    """Names that a node and the graphs inside it read."""
    yield from node.input
    for entry in node.attribute:
        for inner in (*([entry.g] if entry.type == onnx.AttributeProto.GRAPH else []), *entry.graphs):
            for each in inner.node:
                yield from _inputs(each)
            yield from (info.name for info in inner.output)
