"""`unroll_recurrent`: LSTM and GRU as plain matrix products, one set per step, for targets without such an op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from deploykit.capture.check import require_parity
from deploykit.capture.editor import Editor, is_static, shape_of
from deploykit.capture.fingerprint import constant, fingerprint
from deploykit.capture.model import CapturedModel
from deploykit.capture.normalise import normalise
from deploykit.capture.origins import origin_of
from deploykit.capture.rewrite_cells import State, Step, gru_step, lstm_step, relu_step, tanh_step
from deploykit.capture.rewrite_ops import expand
from deploykit.errors import CaptureError
from deploykit.quiet import quiet

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
        directions, per_cell = 1 + bidirectional, 4 if has_biases else 2
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
        gates = linear(x, weights[0], *weights[2:3])
        recurrent = (weights[1], *weights[3:4])
        outputs: list[Tensor] = []
        steps = range(x.shape[0])
        for t in reversed(steps) if backward else steps:
            state = self.step(gates[t], state, recurrent)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backward else outputs), state


_CELLS = {
    aten.lstm.input: _Cell(lstm_step),
    aten.gru.input: _Cell(gru_step),
    aten.rnn_tanh.input: _Cell(tanh_step),
    aten.rnn_relu.input: _Cell(relu_step),
}
RECURRENT = tuple(_CELLS)


def unroll_recurrent(captured: CapturedModel) -> CapturedModel:
    """Unroll every LSTM, GRU and RNN over its (static) length; other models come back as they are.

    Returns:
        a capture of the same model with a graph, origins and fingerprint of its own, checked against the first.

    Raises:
        CaptureError: a recurrent layer has dynamic axes, or the unrolled graph differs.
    """
    if not any(n.target in RECURRENT for n in captured.graph_module.graph.nodes):
        return captured
    with quiet(), torch.no_grad():
        editor = _unrolled(captured)
        module = normalise(editor)
        reference = captured.graph_module(*captured.example_inputs)
        results = module(*captured.example_inputs)
        require_parity(reference, results, lambda: _unrolled(captured), (), captured.example_inputs)
    origins = {n.name: origin_of(n) for n in module.graph.nodes if n.op == "call_function"}
    digest = fingerprint(module, captured.inputs)
    return replace(captured, graph_module=module, origins=origins, fingerprint=digest)


def _unrolled(captured: CapturedModel) -> Editor:
    graph = torch.fx.Graph()
    env: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in captured.graph_module.graph.nodes:
        env[node] = graph.node_copy(node, lambda n: env[n])
    names = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    editor = Editor(graph, {name: constant(captured.graph_module, name) for name in names})
    for node in editor.calls(*RECURRENT):
        if not all(is_static(shape_of(n)) for n in node.all_input_nodes):
            raise CaptureError(
                f"{origin_of(node)} has dynamic axes and cannot be unrolled", hint="capture with static shapes"
            )
        expand(editor, node, _CELLS[node.target].run)
    return editor
