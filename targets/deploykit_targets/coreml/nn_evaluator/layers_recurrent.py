"""Recurrent layers: sequences of shape (steps, batch, features, 1, 1), gates by name, rules of the MIL ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from deploykit_targets.coreml.nn_evaluator.layer import FormError, Function, LayerTable, mil
from deploykit_targets.coreml.nn_evaluator.weights import tensor

_GATES = ("inputGate", "forgetGate", "outputGate", "blockInput")


def _activation(parameters: Any) -> str:
    """Name of an activation for MIL.

    Raises:
        FormError: one with parameters of its own.
    """
    kind = parameters.WhichOneof("NonlinearityType")
    own = {"sigmoid": "sigmoid", "tanh": "tanh", "ReLU": "relu"}
    if kind == "linear" and (parameters.linear.alpha, parameters.linear.beta) == (1.0, 0.0):
        return "linear"
    if kind not in own:
        raise FormError(f"the activation {kind} inside it")
    return own[kind]


def _stacked(weights: Any, kind: str, gates: Sequence[str], shape: tuple[int, ...]) -> Tensor:
    """The same part of several gates, one below the other."""
    return torch.cat([tensor(getattr(weights, f"{gate}{kind}"), shape) for gate in gates])


def _lstm_weights(p: Any, weights: Any, suffix: str) -> dict[str, Any]:
    """Arguments of MIL's `lstm` for one direction; gates in the order input, forget, output, cell."""
    inputs, size = p.inputVectorSize, p.outputVectorSize
    found: dict[str, Any] = {
        f"weight_ih{suffix}": _stacked(weights, "WeightMatrix", _GATES, (size, inputs)),
        f"weight_hh{suffix}": _stacked(weights, "RecursionMatrix", _GATES, (size, size)),
    }
    if p.params.hasBiasVectors:
        found[f"bias{suffix}"] = _stacked(weights, "BiasVector", _GATES, (size,))
    if p.params.forgetBias:
        bias = found.get(f"bias{suffix}", torch.zeros(4 * size))
        found[f"bias{suffix}"] = bias + torch.eye(4)[1].repeat_interleave(size)
    if p.params.hasPeepholeVectors:
        found[f"peephole{suffix}"] = _stacked(weights, "PeepholeVector", _GATES[:3], (size,))
    return found


def _lstm_settings(p: Any, activations: Any) -> dict[str, Any]:
    if p.params.coupledInputAndForgetGate:
        raise FormError("coupled gates")
    gate, cell, output = (_activation(each) for each in activations)
    return {
        "recurrent_activation": gate,
        "cell_activation": cell,
        "activation": output,
        "output_sequence": p.params.sequenceOutput,
        "clip": p.params.cellClipThreshold or None,
    }


def _state(value: Tensor) -> Tensor:
    """(1, batch, size, 1, 1) as (batch, size)."""
    return value[0, :, :, 0, 0]


def _five(value: Tensor) -> Tensor:
    """(steps, batch, size) or (batch, size) with five axes."""
    return (value if value.ndim == 3 else value[None])[..., None, None]


def _states(x: Tensor, given: tuple[Tensor, ...], count: int, size: int) -> list[Tensor]:
    """Initial states; zero where the layer is not given any."""
    if given:
        return [_state(each) for each in given]
    return [torch.zeros(x.shape[1], size) for _ in range(count)]


def _one_direction(p: Any) -> Function:
    arguments = _lstm_weights(p, p.weightParams, "") | _lstm_settings(p, p.activations)
    arguments["direction"] = "reverse" if p.reverseInput else "forward"

    def run(x: Tensor, *states: Tensor) -> list[Tensor]:
        h, c = _states(x, states, 2, p.outputVectorSize)
        return [_five(each) for each in mil("lstm")(x=x[..., 0, 0], initial_h=h, initial_c=c, **arguments)]

    return run


def _both_directions(p: Any) -> Function:
    ahead, back = p.weightParams
    arguments = _lstm_weights(p, ahead, "") | _lstm_weights(p, back, "_back")
    arguments |= _lstm_settings(p, p.activationsForwardLSTM)
    if [_activation(a) for a in p.activationsForwardLSTM] != [_activation(a) for a in p.activationsBackwardLSTM]:
        raise FormError("other activations backwards than forwards")

    def run(x: Tensor, *states: Tensor) -> list[Tensor]:
        h, c, h_back, c_back = _states(x, states, 4, p.outputVectorSize)
        both = {"initial_h": torch.cat([h, h_back], -1), "initial_c": torch.cat([c, c_back], -1)}
        y, h, c = mil("lstm")(x=x[..., 0, 0], direction="bidirectional", **both, **arguments)
        (h, h_back), (c, c_back) = h.chunk(2, -1), c.chunk(2, -1)
        return [_five(each) for each in (y, h, c, h_back, c_back)]

    return run


def _gru(p: Any) -> Function:
    inputs, size, gates = p.inputVectorSize, p.outputVectorSize, ("resetGate", "outputGate", "updateGate")
    gate, output = (_activation(each) for each in p.activations)
    arguments: dict[str, Any] = {
        "weight_ih": _stacked(p, "WeightMatrix", gates, (size, inputs)),
        "weight_hh": _stacked(p, "RecursionMatrix", gates, (size, size)),
        "direction": "reverse" if p.reverseInput else "forward",
        "output_sequence": p.sequenceOutput,
        "recurrent_activation": gate,
        "activation": output,
    }
    if p.hasBiasVectors:
        arguments["bias"] = _stacked(p, "BiasVector", gates, (size,))

    def run(x: Tensor, *states: Tensor) -> list[Tensor]:
        (h,) = _states(x, states, 1, size)
        return [_five(each) for each in mil("gru")(x=x[..., 0, 0], initial_h=h, **arguments)]

    return run


def _simple(p: Any) -> Function:
    inputs, size = p.inputVectorSize, p.outputVectorSize
    arguments: dict[str, Any] = {
        "weight_ih": tensor(p.weightMatrix, (size, inputs)),
        "weight_hh": tensor(p.recursionMatrix, (size, size)),
        "bias": tensor(p.biasVector, (size,)) if p.hasBiasVector else None,
        "direction": "reverse" if p.reverseInput else "forward",
        "output_sequence": p.sequenceOutput,
        "activation": _activation(p.activation),
    }

    def run(x: Tensor, *states: Tensor) -> list[Tensor]:
        (h,) = _states(x, states, 1, size)
        return [_five(each) for each in mil("rnn")(x=x[..., 0, 0], initial_h=h, **arguments)]

    return run


OPS: Final[LayerTable] = {
    "biDirectionalLSTM": _both_directions,
    "gru": _gru,
    "simpleRecurrent": _simple,
    "uniDirectionalLSTM": _one_direction,
}
"""Rules of this family, by the name of the layer's parameters."""
