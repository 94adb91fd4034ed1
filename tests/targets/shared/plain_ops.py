"""Operators that some runtimes lack or converters get wrong, in one model, for the tests of every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deploykit

_PLACES, _EDGES, _WEIGHT = torch.tensor([0, 2, 1]), torch.tensor([-1.0, 0.0, 1.0]), torch.ones(2, 4, 3, 3) / 9

OPERATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "factor of a sum": lambda x: torch.add(x, x * x, alpha=2),
    "factor of a difference": lambda x: torch.sub(x, x * x, alpha=3),
    "place of the largest": lambda x: x.argmax().float() + x.argmin(),
    "no batch": lambda x: F.conv2d(x[0], _WEIGHT),
    "tanh form of GELU": lambda x: F.gelu(x * 3, approximate="tanh"),
    "rms norm": lambda x: F.rms_norm(x, (8,), torch.arange(8.0)),
    "rms norm of two axes": lambda x: F.rms_norm(x, (8, 8), None, 1e-3),
    "circular padding": lambda x: F.pad(x, (1, 2, 1, 1), mode="circular"),
    "padding that cuts": lambda x: F.pad(x, (-1, 2)),
    "diagonal": lambda x: torch.diagonal(x, 1, 2, 3),
    "windows": lambda x: x.unfold(-1, 4, 2),
    "strides": lambda x: torch.as_strided(x.contiguous(), (4, 4), (2, 1), 3),
    "channels shuffled": lambda x: F.channel_shuffle(x, 2),
    "fold": lambda x: F.fold(F.unfold(x, 3, 1, 1, 2), (8, 8), 3, 1, 1, 2),
    "top": lambda x: torch.topk(x, 3, 1).values,
    "k-th value": lambda x: torch.kthvalue(x, 2, -1).values,
    "median": lambda x: torch.median(x, -1).values + torch.median(x),
    "running product": lambda x: torch.cumprod(x, -1),
    "running largest": lambda x: torch.cummax(x, -1).values + torch.cummin(x, 1).values,
    "running log-sum": lambda x: torch.logcumsumexp(x, -1),
    "regions": lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    "bins": lambda x: (torch.bucketize(x, _EDGES) + torch.searchsorted(_EDGES, x.contiguous(), right=True)).float(),
    "copied rows": lambda x: torch.index_copy(x, 2, _PLACES, x[:, :, :3] * 2) + x.index_fill(1, _PLACES, 2.0),
    "lengths": lambda x: torch.hypot(x, x * 2) + torch.copysign(x, -x),
    "logs of sums": lambda x: torch.logaddexp(x, x * 0.5) + torch.logaddexp2(x, x * 0.5),
    "errors": lambda x: torch.erfc(x) + torch.exp2(x),
    "hyperbolic": lambda x: torch.asinh(x) + torch.acosh(x.abs() + 1.1),
    "whole parts": lambda x: torch.trunc(x * 3) + torch.fmod(x, 0.3) + torch.round(x, decimals=1),
    "shrunk": lambda x: F.hardshrink(x) + F.celu(x, 0.7) + F.logsigmoid(x) + F.rrelu(x),
    "between": lambda x: torch.lerp(x, x * 2, 0.3) + torch.addcmul(x, x, x, value=0.5) + torch.xlogy(x, x.abs() + 0.1),
    "sine over its angle": lambda x: torch.sinc(torch.relu(x)),
}
"""Name -> operators, each of an image of four channels."""


class Operators(nn.Module):
    """All of them, each as an output."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name.replace(" ", "_").replace("-", "_"): OPERATORS[name](x) for name in self.names}


def check(target: str, folder: Path, *, without: tuple[str, ...] = ()) -> None:
    """Every output of the float artifact is PyTorch's."""
    model = Operators(tuple(name for name in OPERATORS if name not in without))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    artifact = deploykit.export(
        model, target, "fp32", example_inputs=(x,), output=folder / "a", profile=False, progress=False, strict=False
    )
    with artifact.open() as session:
        found = session.run({"x": x.numpy()})
    for name, wanted in model(x).items():
        apart = (torch.as_tensor(found[name]).double() - wanted.double()).abs().max()
        assert apart <= 2e-5 * max(1.0, float(wanted.abs().max())), f"{name}: {float(apart)} apart"
