"""LSTM, GRU and simple RNN as ONNX's native operators, one per layer.

PyTorch and ONNX order the gates differently (LSTM: i f g o against i o f c; GRU: r z n against z r h) and ONNX joins
the two directions; the weights are re-ordered here, once.
"""

from __future__ import annotations

from typing import Any

import torch

from deploykit_targets._onnx.ops.table import Call, translates

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


@translates("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")
def recurrent(c: Call) -> tuple[str, ...]:
    """(outputs, last hidden[, last cell]) of a stack of layers.

    Raises:
        NotImplementedError: dropout or training mode, projections, or weights that are not constant.
    """
    stem = str(c.node.target).split(".")[1]
    kind = {"lstm": "LSTM", "gru": "GRU"}.get(stem, "RNN")
    if c["train"] and c["dropout"]:
        raise NotImplementedError("a recurrent layer in training mode with dropout")
    weights = [_constant(c, node) for node in c["params"]]
    states = [c.name_of(node) for node in (c["hx"] if kind == "LSTM" else [c["hx"]])]
    value = c.value("input")
    if c["batch_first"]:
        value = c.op("Transpose", value, perm=[1, 0, 2])
    value, last = _stack(c, kind, stem, value, states, weights)
    if c["batch_first"]:
        value = c.op("Transpose", value, perm=[1, 0, 2])
    return (value, *last)


def _constant(c: Call, node: Any) -> torch.Tensor:
    tensor = c.source.constant_of(node)
    if tensor is None:
        raise NotImplementedError("a recurrent layer whose weights are computed or quantised")
    return tensor


def _stack(
    c: Call, kind: str, stem: str, value: str, states: list[str], weights: list[torch.Tensor]
) -> tuple[str, list[str]]:
    """All layers in order; the last states of all of them joined as PyTorch has them."""
    directions, layers = 2 if c["bidirectional"] else 1, c["num_layers"]
    per_direction = len(weights) // (layers * directions)
    if per_direction != (4 if c["has_biases"] else 2):
        raise NotImplementedError("an LSTM with projections")
    finals: list[list[str]] = [[] for _ in states]
    for layer in range(layers):
        start = layer * directions * per_direction
        parts = [weights[start + d * per_direction : start + (d + 1) * per_direction] for d in range(directions)]
        begin = [_rows(c, state, layer * directions, directions, layers) for state in states]
        value, ends = _layer(c, kind, stem, value, begin, parts, layer)
        for collected, end in zip(finals, ends, strict=True):
            collected.append(end)
    return value, [ends[0] if len(ends) == 1 else c.op("Concat", *ends, axis=0) for ends in finals]


def _rows(c: Call, state: str, first: int, count: int, layers: int) -> str:
    if layers == 1:
        return state
    return c.op("Slice", state, c.ints([first]), c.ints([first + count]), c.ints([0]))


def _layer(
    c: Call, kind: str, stem: str, value: str, begin: list[str], parts: list[list[torch.Tensor]], layer: int
) -> tuple[str, list[str]]:
    hidden, directions = parts[0][1].shape[1], len(parts)
    base = f"{c.node.name}.layer{layer}"
    stacked = [torch.stack([_reorder(part[index], kind, hidden) for part in parts]) for index in (0, 1)]
    names = [c.writer.initialiser(tensor, f"{base}.{role}") for tensor, role in zip(stacked, "wr", strict=True)]
    bias = ""
    if len(parts[0]) == 4:
        joined = torch.stack([torch.cat([_reorder(part[index], kind, hidden) for index in (2, 3)]) for part in parts])
        bias = c.writer.initialiser(joined, f"{base}.b")
    outputs = c.writer.multi(
        kind, (value, *names, bias, "", *begin), 1 + len(begin), hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
        linear_before_reset=1 if kind == "GRU" else None,
        activations=["Relu"] * directions if stem == "rnn_relu" else None,
    )  # fmt: skip
    if directions == 1:
        return c.op("Squeeze", outputs[0], c.ints([1])), list(outputs[1:])
    ordered = c.op("Transpose", outputs[0], perm=[0, 2, 1, 3])  # (time, 2, batch, h) -> (time, batch, 2, h)
    return c.op("Reshape", ordered, c.ints([0, 0, 2 * hidden])), list(outputs[1:])


def _reorder(tensor: torch.Tensor, kind: str, hidden: int) -> torch.Tensor:
    """Rows of a weight or bias, gate by gate, in ONNX's order."""
    return torch.cat([tensor[gate * hidden : (gate + 1) * hidden] for gate in _GATES[kind]])
