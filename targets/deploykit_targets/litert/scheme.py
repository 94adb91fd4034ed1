"""How LiteRT wants an int8 model quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit_calibration.scheme import LITERT, QuantScheme

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit.capture import CapturedModel
    from deploykit_calibration.graph_view import GraphView

_INTEGER_ENDS = frozenset({"conv", "conv_transpose", "matmul"})


def scheme(captured: CapturedModel, *, io: str) -> QuantScheme:
    """The scheme for one model: int8 affine activations, weights rounded in the file's own converter.

    Rounding what the model returns costs 0.5 to 7 dB. Where a linear layer writes it, the layer stays out of the static
    graph, and rounds its input at run time instead: int8 products, float results. Other products have no such form that
    is as fast, and write int8.

    Args:
        io: `float`, or `int8` for a file that gives int8 itself.
    """
    from deploykit_calibration.graph_view import GraphView

    view = GraphView(captured.graph_module.graph)
    integers = io == "int8" or any(_writer(view, node) in _INTEGER_ENDS for node in view.returned)
    return replace(LITERT, float_outputs=not integers)


def _writer(view: GraphView, node: Node) -> str:
    """Kind of the op that computes a tensor, seen through what only moves or activates it."""
    from torch.fx import Node as FxNode

    from deploykit_calibration.op_kinds import ACTIVATIONS

    while view.kinds[node] in ACTIVATIONS | {"reshape"} and node.args and isinstance(node.args[0], FxNode):
        node = node.args[0]
    return str(view.kinds[node])
