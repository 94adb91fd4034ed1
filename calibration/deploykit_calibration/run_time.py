"""Rounding that a kernel does when it runs, from the extremes of what it reads then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from deploykit.contract.formats import PerAxis, PerGroup, PerTensor, TensorScheme
from deploykit_calibration.op_kinds import data_arguments

SAMPLE, TENSOR = -1, -2
"""Sizes of `round_rows`."""


def round_inputs(layer: Node, form: TensorScheme, rows: Callable[..., Tensor] | None = None) -> None:
    """Let a layer of a graph read rounded inputs; a recurrent one rounds what each of its steps reads.

    Args:
        rows: what rounds in the place of `round_rows`, whose arguments it takes; not of the steps of a recurrent one.
    """
    rounding = arguments_of(form)
    if rounds_steps(layer):
        cell = str(layer.target).removeprefix("aten.")
        layer.target, layer.args = recurrent_of_rounded, (cell, rounding, *layer.args)
        return
    for number, source in enumerate(dict.fromkeys(data_arguments(layer))):
        if source.op == "get_attr":
            continue
        with layer.graph.inserting_before(layer):
            name = f"{layer.name}_input{number or ''}"
            rounded = layer.graph.create_node("call_function", rows or round_rows, (source, *rounding), name=name)
        layer.replace_input_with(source, rounded)


def rounds_steps(layer: Node) -> bool:
    """Whether a layer that rounds its inputs is a recurrent one, which rounds its state in each step."""
    return str(layer.target).removeprefix("aten.") in _CELLS


def arguments_of(form: TensorScheme) -> tuple[int, int, int, bool]:
    """The arguments of `round_rows` for a form of inputs."""
    sizes = {PerTensor: TENSOR, PerAxis: SAMPLE}
    own = form.granularity
    size = own.size if isinstance(own, PerGroup) else sizes[type(own)]
    return size, form.quant_min, form.quant_max, form.symmetric


def round_rows(x: Tensor, size: int = 0, low: int = -128, high: int = 127, symmetric: bool = False) -> Tensor:
    """Round as a kernel does that looks for the extremes of its input, and of zero, when it runs.

    Args:
        size: elements of the last axis that share a scale: 0 is all of them (a row), `SAMPLE` and `TENSOR` are all of
            a sample and of the tensor.
        low, high: the integers that are used, inclusive.
        symmetric: without a zero-point.
    """
    rows = _rows_of(x, size)
    least, most = rows.amin(-1, keepdim=True).clamp(max=0.0), rows.amax(-1, keepdim=True).clamp(min=0.0)
    empty = least == most
    span = torch.maximum(most, -least) / high if symmetric else (most - least) / float(high - low)
    scale = span.masked_fill(empty, 1.0)
    zero_point = torch.zeros_like(scale) if symmetric else torch.round(low - least / scale)
    rounded = rows.div(scale).round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)
    if size > 0:
        rounded = rounded.flatten(-2)[..., : x.shape[-1]]
    return rounded.reshape(x.shape)


def _rows_of(x: Tensor, size: int) -> Tensor:
    """The elements that share a scale as rows; the last run of an axis is filled up with zeros."""
    if size == TENSOR:
        return x.reshape(1, -1)
    if size == SAMPLE:
        return x.flatten(1)
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)) if size else x


def recurrent_of_rounded(
    cell: str,
    rounding: tuple[int, int, int, bool],
    x: Tensor,
    states: Sequence[Tensor] | Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    rows: Callable[..., Tensor] = round_rows,
) -> tuple[Tensor, ...]:
    """A recurrent operator of ATen whose products read rounded inputs and states: of all steps, and of each step.

    Args:
        cell: one of `_CELLS`.
        rounding: the rounding of `arguments_of`; the others are those of the operator.
        rows: what rounds in the place of `round_rows`, whose arguments it takes.
    """
    del dropout, training
    x = x.transpose(0, 1) if batch_first else x
    starts = [states] if isinstance(states, Tensor) else states
    each, directions, last = 4 if has_biases else 2, 2 if bidirectional else 1, list[tuple[Tensor, ...]]()
    for layer in range(layers):
        read, found = rows(x, *rounding), []
        for direction in range(directions):
            number = layer * directions + direction
            own, state = weights[number * each : (number + 1) * each], tuple(start[number] for start in starts)
            steps = read.flip(0) if direction else read
            output, state = _run_direction(_CELLS[cell], steps, state, own, lambda h: rows(h, *rounding))
            found.append(output.flip(0) if direction else output)
            last.append(state)
        x = torch.cat(found, -1)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(each) for each in zip(*last, strict=True)))


State = tuple[Tensor, ...]


def _run_direction(
    cell: Callable[[Tensor, Tensor, State], State],
    steps: Tensor,
    state: State,
    weights: Sequence[Tensor],
    rounded: Callable[[Tensor], Tensor],
) -> tuple[Tensor, State]:
    w_input, w_hidden, *biases = weights
    b_input, b_hidden = biases or (torch.zeros(()), torch.zeros(()))
    outputs = []
    for step in steps @ w_input.T + b_input:
        state = cell(step, rounded(state[0]) @ w_hidden.T + b_hidden, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _lstm(inputs: Tensor, hiddens: Tensor, state: State) -> State:
    enter, forget, update, leave = (inputs + hiddens).chunk(4, -1)
    kept = forget.sigmoid() * state[1] + enter.sigmoid() * update.tanh()
    return leave.sigmoid() * kept.tanh(), kept


def _gru(inputs: Tensor, hiddens: Tensor, state: State) -> State:
    (reset, update, new), (own_reset, own_update, own_new) = inputs.chunk(3, -1), hiddens.chunk(3, -1)
    kept = (update + own_update).sigmoid()
    return ((1 - kept) * (new + (reset + own_reset).sigmoid() * own_new).tanh() + kept * state[0],)


_CELLS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "lstm.input": _lstm,
    "gru.input": _gru,
    "rnn_tanh.input": lambda inputs, hiddens, _: ((inputs + hiddens).tanh(),),
    "rnn_relu.input": lambda inputs, hiddens, _: ((inputs + hiddens).relu(),),
}
