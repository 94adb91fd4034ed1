"""A deployed model is a function: dropout that runs in eval mode and random ops are refused before normalisation."""

from __future__ import annotations

import torch
from torch import fx

from deploykit.capture.editor import Call
from deploykit.capture.origins import origin_of
from deploykit.errors import CaptureError

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


def _is_random(node: Call) -> bool:
    target = node.target
    if target in _TRAIN_FLAG_AT:
        return bool(_argument(node, _TRAIN_FLAG_AT[target], "train"))
    if target in _QUIET_WITHOUT_DROPOUT:
        trains = target is not aten.scaled_dot_product_attention.default and not _argument(node, 6, "train")
        return bool(_argument(node, _QUIET_WITHOUT_DROPOUT[target], "dropout_p")) and not trains
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _argument(node: Call, index: int, name: str) -> object:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, False)
