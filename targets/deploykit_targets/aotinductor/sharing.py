"""Weights that several layers read, as the steps of a recurrent layer do: multiplied as integers, and packed once.

PyTorch's compiler gives a layer to oneDNN where the dequantized weight is the layer's alone, and computes the others in
float; it merges equal nodes itself before it looks. So each layer gets a dequantization of its own while it looks, and
what is packed of the same weight is one constant behind. Nothing of the compiler's options says it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.fx import Graph, GraphModule, Node

_lock = threading.Lock()
_DEQUANTIZE = "quantized_decomposed.dequantize_per_channel"
_TURNED = ("aten.permute", "aten.t.", "aten.transpose")
_PACKED = ("onednn.qlinear_prepack", "onednn.qconv_prepack")
Passes = Callable[[GraphModule, Sequence[Any]], Any]


@contextlib.contextmanager
def packed_once() -> Iterator[None]:
    """Compile inside the block with shared weights in integers; one thread at a time."""
    from torch._inductor import freezing  # warns when it is imported, which the caller keeps

    with _lock:
        compiler: Any = freezing
        before = compiler.freezing_passes
        compiler.freezing_passes = _around(before)
        try:
            yield
        finally:
            compiler.freezing_passes = before


def _around(passes: Passes) -> Passes:
    def run(module: GraphModule, examples: Sequence[Any]) -> Any:
        one_each(module.graph)
        found = passes(module, examples)
        merge(module.graph)
        module.recompile()
        return found

    return run


def one_each(graph: Graph) -> None:
    """Give each reader of a dequantized weight, turned or not, a dequantization of its own; in place."""
    weights = [node for node in graph.nodes if str(node.target).startswith(_DEQUANTIZE)]
    turned = [user for node in weights for user in node.users if str(user.target).startswith(_TURNED)]
    for node in (*turned, *weights):
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))


def merge(graph: Graph) -> None:
    """Pack each weight once; in place."""
    known: dict[str, Node] = {}
    for node in list(graph.nodes):
        if str(node.target).startswith(_PACKED):
            first = known.setdefault(f"{node.target}{node.args}{node.kwargs}", node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)
