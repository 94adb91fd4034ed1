"""Recurrent cells as functions of one step, and the cell ops of PyTorch written out with them.

A cell is two linear layers and arithmetic element by element: written out, both are seen by the quantiser, and no
target needs an operator for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from deploykit.capture.editor import Editor
from deploykit.capture.rewrite_ops import expand

aten = torch.ops.aten

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Sequence[Tensor]], State]
"""(input part of the gates, state, recurrent weight and bias) -> next state; the output is its first tensor."""


def lstm_step(gates_x: Tensor, state: State, recurrent: Sequence[Tensor]) -> State:
    """One step of an LSTM; gates i, f, g, o."""
    hidden, cell = state
    i, f, g, o = (gates_x + linear(hidden, *recurrent)).chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru_step(gates_x: Tensor, state: State, recurrent: Sequence[Tensor]) -> State:
    """One step of a GRU; gates r, z, n."""
    (hidden,) = state
    r_x, z_x, n_x = gates_x.chunk(3, 1)
    r_h, z_h, n_h = linear(hidden, *recurrent).chunk(3, 1)
    update = (z_x + z_h).sigmoid()
    new = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return (new + update * (hidden - new),)


def tanh_step(gates_x: Tensor, state: State, recurrent: Sequence[Tensor]) -> State:
    """One step of a plain recurrent layer."""
    return ((gates_x + linear(state[0], *recurrent)).tanh(),)


def relu_step(gates_x: Tensor, state: State, recurrent: Sequence[Tensor]) -> State:
    """One step of a plain recurrent layer with relu."""
    return ((gates_x + linear(state[0], *recurrent)).relu(),)


_STEPS: dict[Any, Step] = {
    aten.lstm_cell.default: lstm_step,
    aten.gru_cell.default: gru_step,
    aten.rnn_tanh_cell.default: tanh_step,
    aten.rnn_relu_cell.default: relu_step,
}


def expand_cells(editor: Editor) -> None:
    """Write every LSTMCell, GRUCell and RNNCell as two linear layers and what stands between the gates."""
    for node in editor.calls(*_STEPS):
        expand(editor, node, _as_op(_STEPS[node.target]), any_shape=True)


def _as_op(step: Step) -> Callable[..., Any]:
    """A step with the arguments and results of the op: a tensor, or hidden and cell state."""

    def run(
        x: Tensor, state: Tensor | Sequence[Tensor], w: Tensor, r: Tensor, b: Tensor | None = None, c: Any = None
    ) -> Any:
        states = (state,) if isinstance(state, Tensor) else tuple(state)
        after = step(linear(x, w, b), states, (r,) if c is None else (r, c))
        return after if len(after) > 1 else after[0]

    return run
