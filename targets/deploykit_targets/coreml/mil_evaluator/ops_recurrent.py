"""MIL recurrent ops: `rnn`, `gru`, `lstm`, native in the op set.

Sequences are (s, b, features). In direction `reverse` the sequence is fed from its end and the outputs stay in the
order in which they were computed; a bidirectional LSTM turns its backward half around again. The gates read the
input of all time steps at once, so that a step costs one product with the recurrent weights.

`gru` applies the reset gate to the hidden state before the product, W (r * h), which is what Core ML computes; with
`reset_after` (iOS18) after it, r * (W h + b), which is PyTorch's GRU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator.operation import Op, rounds

_Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: Final[dict[str, _Activation]] = {
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "tanh": torch.tanh,
}


def _activation(name: str) -> _Activation:
    """The activation, with the default parameters that the op set gives no way to change.

    Raises:
        ValueError: unknown name.
    """
    try:
        return _ACTIVATIONS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown activation {name!r}") from None


def _oriented(x: Tensor, direction: str) -> Tensor:
    """The sequence in the order of computation.

    Raises:
        ValueError: unknown direction.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"unknown direction {direction!r}")
    return x.flip(0) if direction == "reverse" else x


def _sequence(steps: list[Tensor], whole: bool) -> Tensor:
    return torch.stack(steps if whole else steps[-1:])


def _rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    direction: str,
    output_sequence: bool,
    activation: str,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h = activation(W_ih x + W_hh h + bias)."""
    act, h, steps = _activation(activation), initial_h, []
    for driven in F.linear(_oriented(x, direction), weight_ih, bias):
        h = act(driven + h @ weight_hh.T)
        steps.append(h)
    return _sequence(steps, output_sequence), h


def _gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    direction: str,
    output_sequence: bool,
    recurrent_activation: str,
    activation: str,
    bias: Tensor | None = None,
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights and biases in the order reset, output, update."""
    gate, act, h, steps = _activation(recurrent_activation), _activation(activation), initial_h, []
    recurrent = torch.zeros(weight_hh.shape[0]) if bias is None else bias
    u_r, u_o, u_z = weight_hh.chunk(3)
    c_r, c_o, c_z = recurrent.chunk(3)
    for driven in F.linear(_oriented(x, direction), weight_ih, input_bias):
        x_r, x_o, x_z = driven.chunk(3, dim=-1)
        r = gate(x_r + F.linear(h, u_r, c_r))
        z = gate(x_z + F.linear(h, u_z, c_z))
        candidate = r * F.linear(h, u_o, c_o) if reset_after else F.linear(r * h, u_o, c_o)
        h = (1 - z) * act(x_o + candidate) + z * h
        steps.append(h)
    return _sequence(steps, output_sequence), h


def _lstm_direction(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    activations: tuple[_Activation, _Activation, _Activation],
    clip: float | None,
) -> tuple[list[Tensor], Tensor]:
    """Hidden states in the order of x, and the last cell state. Gates in the order input, forget, output, cell."""
    gate, cell, act = activations
    zero = torch.zeros(())
    p_i, p_f, p_o = (zero, zero, zero) if peephole is None else peephole.chunk(3)
    steps = []
    for driven in F.linear(x, weight_ih, bias):
        i, f, o, z = (driven + h @ weight_hh.T).chunk(4, dim=-1)
        i, f = gate(i + p_i * c), gate(f + p_f * c)
        c = f * c + i * cell(z)
        if clip is not None:
            c = c.clamp(-clip, clip)
        h = gate(o + p_o * c) * act(c)
        steps.append(h)
    return steps, c


def _lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    direction: str,
    output_sequence: bool,
    recurrent_activation: str,
    cell_activation: str,
    activation: str,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(all or last hidden states, last hidden state, last cell state); both directions side by side."""
    acts = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    if direction != "bidirectional":
        steps, c = _lstm_direction(
            _oriented(x, direction), initial_h, initial_c, weight_ih, weight_hh, bias, peephole, acts, clip
        )
        return _sequence(steps, output_sequence), steps[-1], c
    assert weight_ih_back is not None
    assert weight_hh_back is not None
    (h, h_back), (c, c_back) = initial_h.chunk(2, dim=-1), initial_c.chunk(2, dim=-1)
    ahead, c = _lstm_direction(x, h, c, weight_ih, weight_hh, bias, peephole, acts, clip)
    back, c_back = _lstm_direction(
        x.flip(0), h_back, c_back, weight_ih_back, weight_hh_back, bias_back, peephole_back, acts, clip
    )
    last = torch.cat([ahead[-1], back[-1]], dim=-1)
    whole = torch.cat([torch.stack(ahead), torch.stack(back[::-1])], dim=-1) if output_sequence else last[None]
    return whole, last, torch.cat([c, c_back], dim=-1)


OPS: Final[dict[str, Op]] = {
    "gru": rounds(_gru),
    "lstm": rounds(_lstm),
    "rnn": rounds(_rnn),
}
"""Rules of this family, by MIL name."""
