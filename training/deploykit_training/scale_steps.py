"""Steps of learned scales for trainers whose optimizer is of the model alone.

The scales have an Adam of their own, whose steps do not depend on how a loss is scaled for half precision; a step
whose gradients are not finite is left out, as trainers do. Of several processes each takes the mean of all gradients,
and so the same step. Nothing here decides when a step is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LEARNING_RATE = 0.02
"""Of logarithms of factors: a step changes a scale by up to 2 %."""


class ScaleSteps:
    """The optimizer of the scales of one training.

    Args:
        parameters: logarithms of factors, shape (), see `LearnedScales`.
        lr: the learning rate.
        mean: the mean of a tensor over all processes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, mean: Callable[[Tensor], Tensor]) -> None:
        self._parameters, self._mean, self._lr = list(parameters), mean, lr
        self._optimizer = torch.optim.Adam(self._parameters, lr=lr)

    def step(self) -> None:
        """Move the scales by the gradients since the last step; every process calls it equally often."""
        own = torch.stack([torch.zeros(()) if p.grad is None else p.grad.detach().cpu() for p in self._parameters])
        gradients = self._mean(own)
        self._optimizer.zero_grad(set_to_none=True)
        if not bool(gradients.isfinite().all()):
            return
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.to(parameter.device)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Scales and moments, plain values, which are safe to load."""
        scales = torch.stack([parameter.detach().cpu() for parameter in self._parameters])
        return {"scales": scales, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the scales and moments of a run that is resumed; the learning rate is that of this one."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["scales"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes of `torch.distributed`; itself where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    where = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = value.to(where)
    torch.distributed.all_reduce(total)
    return (total / torch.distributed.get_world_size()).to(value.device)
