"""What is refused before normalisation, because a deployed model is a function of its inputs with known shapes.

Random ops (and dropout that runs in eval mode), buffers that `forward` writes, and results whose size depends on the
values of an input.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from deploykit.capture.editor import Call
from deploykit.capture.functionalise import is_view, written_argument
from deploykit.capture.origins import origin_of
from deploykit.contract.errors import CaptureError

aten = torch.ops.aten

_TRAIN_FLAG_AT = {
    aten.dropout.default: 2,
    aten.dropout_.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
    aten.feature_alpha_dropout.default: 2,
    aten.native_dropout.default: 2,
    aten.rrelu.default: 3,
}
"""Op -> position of the argument that says whether it is random."""

_QUIET_WITHOUT_DROPOUT = {
    aten.scaled_dot_product_attention.default: 4,
    aten._scaled_dot_product_flash_attention_for_cpu.default: 3,
    aten.lstm.input: 5,
    aten.gru.input: 5,
    aten.rnn_tanh.input: 5,
    aten.rnn_relu.input: 5,
}
"""Op -> position of its dropout probability; without dropout it is a function of its inputs."""


def refuse_randomness(graph: fx.Graph) -> None:
    """Raise for the first op whose result is random.

    Raises:
        CaptureError: names op, module path and source line.
    """
    for node in graph.nodes:
        if node.op == "call_function" and _is_random(node):
            raise CaptureError(
                f"the model is random in eval mode: {origin_of(node)}",
                hint="call model.eval() before torch.export.export, write F.dropout(x, p, training=self.training), or "
                "pass random numbers in as an input",
            )


def refuse_value_dependent_sizes(graph: fx.Graph) -> None:
    """Raise for the first op whose result has a size that only the values of an input decide.

    Raises:
        CaptureError: names op, module path and source line.
    """
    for node in graph.nodes:
        vals = node.meta.get("val")
        tensors = [val for val in (vals if isinstance(vals, tuple | list) else (vals,)) if isinstance(val, Tensor)]
        if node.op == "call_function" and any(free_unbacked_symbols(val) for val in tensors):
            raise CaptureError(
                f"the size of a result depends on the values of an input: {origin_of(node)}",
                hint="keep sizes fixed (torch.where, masks, topk), or do this step after the model",
            )


def refuse_state(program: torch.export.ExportedProgram) -> None:
    """Raise for a program that writes into a buffer, as functionalised programs say and others show.

    Raises:
        CaptureError: names the buffer.
    """
    buffers = program.graph_signature.inputs_to_buffers
    written = list(program.graph_signature.buffers_to_mutate.values())
    views: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in buffers:
            views[node] = buffers[node.name]
        elif node.op == "call_function":
            target = written_argument(node)
            if target in views:
                written.append(views[target])
            elif target is None and is_view(node) and node.all_input_nodes and node.all_input_nodes[0] in views:
                views[node] = views[node.all_input_nodes[0]]
    if written:
        raise CaptureError(
            f"forward writes into the buffer {written[0]!r}; an exported model keeps no state",
            hint="pass the state in and return it, or do not update it in eval mode",
        )


def _is_random(node: Call) -> bool:
    target = node.target
    if target in _TRAIN_FLAG_AT:
        return bool(_argument(node, _TRAIN_FLAG_AT[target], "train"))
    if target in _QUIET_WITHOUT_DROPOUT:
        recurrent = "scaled_dot_product" not in str(target)
        evaluates = recurrent and not _argument(node, 6, "train")
        return bool(_argument(node, _QUIET_WITHOUT_DROPOUT[target], "dropout_p")) and not evaluates
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _argument(node: Call, index: int, name: str) -> object:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, False)
