"""LSTM, GRU and RNN written as plain matrix products, one set per step; the projection of an LSTM included.

`unroll_projections` is a pass of every capture: no runtime has an LSTM with a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from deploykit.capture.editor import Call, Editor, shape_of
from deploykit.capture.rewrite_cells import State, Step, gru_step, lstm_step, relu_step, tanh_step
from deploykit.capture.rewrite_ops import expand

aten = torch.ops.aten


@dataclass(frozen=True)
class _Cell:
    """A recurrent op as a function of the arguments of its aten form, built from one step."""

    step: Step

    def run(
        self,
        x: Tensor,
        initial: Tensor | Sequence[Tensor],
        weights: Sequence[Tensor],
        has_biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        """Run all layers and directions; (outputs, final states...) as the op returns them."""
        states = (initial,) if isinstance(initial, Tensor) else tuple(initial)
        x = x.transpose(0, 1) if batch_first else x
        directions = 1 + bidirectional
        per_cell = len(weights) // (layers * directions)  # 2, 2 more with biases, 1 more with a projection
        final: list[State] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                cell = weights[index * per_cell : (index + 1) * per_cell]
                output, last = self._direction(x, tuple(s[index] for s in states), cell, backward=direction == 1)
                outputs.append(output)
                final.append(last)
            x = torch.cat(outputs, 2) if bidirectional else outputs[0]
        stacked = (torch.stack([state[k] for state in final]) for k in range(len(states)))
        return (x.transpose(0, 1) if batch_first else x, *stacked)

    def _direction(self, x: Tensor, state: State, weights: Sequence[Tensor], *, backward: bool) -> tuple[Tensor, State]:
        """One layer in one direction; the input part of all steps is one matrix product."""
        weights, projection = (weights[:-1], weights[-1:]) if len(weights) % 2 else (weights, ())
        gates = linear(x, weights[0], *weights[2:3])
        recurrent = (weights[1], *weights[3:4])
        outputs: list[Tensor] = []
        steps = range(x.shape[0])
        for t in reversed(steps) if backward else steps:
            state = self.step(gates[t], state, recurrent)
            state = (linear(state[0], *projection), *state[1:]) if projection else state
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backward else outputs), state


_CELLS = {
    aten.lstm.input: _Cell(lstm_step),
    aten.gru.input: _Cell(gru_step),
    aten.rnn_tanh.input: _Cell(tanh_step),
    aten.rnn_relu.input: _Cell(relu_step),
}
RECURRENT = tuple(_CELLS)


def length_of(node: Call) -> int:
    """The steps of a recurrent op's sequence: a number, as PyTorch captures no such op over a dynamic length."""
    length: int = shape_of(node.args[0])[1 if node.args[8] else 0]
    return length


def unroll(editor: Editor, node: Call) -> None:
    """Replace one recurrent op by its steps; batches may be dynamic."""
    expand(editor, node, _CELLS[node.target].run, any_shape=True)


def unroll_projections(editor: Editor) -> None:
    """Unroll every LSTM with a projection (`proj_size`)."""
    for node in editor.calls(aten.lstm.input):
        weights, has_biases, layers, bidirectional = node.args[2], node.args[3], node.args[4], node.args[7]
        if len(weights) != layers * (1 + bidirectional) * (4 if has_biases else 2):
            unroll(editor, node)
