"""Joins of what int8 layers give that OpenVINO's products of matrices cannot read as integers: they stay in float.

Its plugin of x86 moves what makes floats of integers behind a join, as one scale and zero point for each entry of the
joined axis, whether they differ or not; what rounds a join directly is moved before it first, to the same end. A
convolution or a product over that axis takes them; a product of matrices over another one fails to compile ("cannot be
broadcasted", in `MatMulTransformation`). A maximum with the lowest float32, which changes no number, keeps the two
apart: the join is computed in float, and is rounded behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import helper

from deploykit_calibration.op_kinds import argument, shape_of
from deploykit_targets._onnx.edit import Editor

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto
    from torch.fx import Graph, Node

_LOWEST = np.array(np.finfo(np.float32).min, np.float32)
_JOINS = frozenset({torch.ops.aten.cat.default, torch.ops.aten.concat.default, torch.ops.aten.stack.default})
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_PASSED = frozenset(
    "QuantizeLinear DequantizeLinear Reshape Transpose Squeeze Unsqueeze Flatten Expand Slice Split Gather Concat"
    " Identity Relu Clip MaxPool".split()
)
"""What integers pass as they are."""
_SCALED = frozenset(
    {"Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "ReduceMean", "PRelu", "LeakyRelu", "Resize"}
)
"""What scales and zero points are moved behind, too."""
_INTEGERS = _PRODUCTS | {"DequantizeLinear", "Conv"}


def over_last_axis(graph: Graph) -> frozenset[str]:
    """Names of the joins of a captured graph over its last axis, which products of matrices sum over."""
    return frozenset(node.name for node in graph.nodes if node.target in _JOINS and _is_last(node))


def _is_last(node: Node) -> bool:
    most = len(shape_of(node))
    axis: int = argument(node, 1, "dim", 0)
    return axis % most == most - 1


def keep_apart(model: onnx.ModelProto, fine: Collection[str]) -> None:
    """Keep joins of what layers give in float where products of matrices read them as integers; in place.

    Args:
        model: lowered model, whose nodes have the names of the captured graph.
        fine: joins to leave as they are. Others may be parts of an operator, such as a roll.
    """
    flow = _Flow(model)
    editor = Editor(model)
    for node in list(model.graph.node):
        if node.op_type == "Concat" and node.name not in fine and flow.is_moved(node) and flow.is_multiplied(node):
            joined = helper.make_node("Concat", node.input, [f"{node.output[0]}.joined"], name=node.name)
            joined.attribute.extend(node.attribute)
            inputs = [joined.output[0], editor.add(_LOWEST, "lowest")]
            editor.replace(node, [joined, helper.make_node("Max", inputs, node.output, name=f"{node.name}.kept")])
    editor.finish()


class _Flow:
    """Who makes and who reads the values of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._readers = defaultdict[str, list["NodeProto"]](list)
        self._makers: dict[str, NodeProto] = {}
        for node in model.graph.node:
            self._makers |= dict.fromkeys(node.output, node)
            for value in node.input:
                self._readers[value].append(node)

    def is_moved(self, join: NodeProto) -> bool:
        """Whether its scales are moved: some of what is joined is made of integers, or the join itself is rounded."""
        return self._is_given(join) or any(node.op_type == "QuantizeLinear" for node in self._readers[join.output[0]])

    def _is_given(self, join: NodeProto) -> bool:
        waiting, seen = list(join.input), set[str]()
        while waiting:
            node = self._makers.get(waiting.pop())
            if node is None or node.output[0] in seen:
                continue
            if node.op_type in _INTEGERS:
                return True
            seen.add(node.output[0])
            waiting.extend(node.input if node.op_type in _PASSED | _SCALED else ())
        return False

    def is_multiplied(self, join: NodeProto) -> bool:
        """Whether a product of matrices reads what was joined, as integers."""
        waiting, seen = [(join.output[0], False)], set[tuple[str, bool]]()
        while waiting:
            value, rounded = waiting.pop()
            for reader in self._readers[value]:
                if rounded and reader.op_type in _PRODUCTS:
                    return True
                found = (reader.output[0], rounded or reader.op_type == "QuantizeLinear")
                if reader.op_type in _PASSED and found not in seen:
                    seen.add(found)
                    waiting.append(found)
        return False
