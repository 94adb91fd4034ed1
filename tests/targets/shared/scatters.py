"""Networks that sum, and reduce, by index, for the tests of every target: graph layers, histograms, pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploykit

EDGES = torch.tensor([[0, 1, 1, 4, 4, 4, 2], [1, 0, 2, 1, 2, 0, 4]])


class Graph(nn.Module):
    """Two rounds of messages between nodes; `how` says how those that arrive are put together."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b = how, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, edges: Tensor) -> Any:
        messages, to = torch.relu(self.a(x))[edges[0]], edges[1]
        spread = to[:, None].expand(-1, 16)
        nothing = torch.zeros(5, 16)
        if self.how == "index_add":
            met = nothing.index_add(0, to, messages)
        elif self.how == "scatter_add":
            met = nothing.scatter_add(0, spread, messages)
        elif self.how == "columns":
            met = torch.zeros(5, 16).scatter_add(0, torch.stack([to, edges[0]], 1), messages[:, :2])
        else:
            met = nothing.scatter_reduce(0, spread, messages, self.how, include_self=False)
        return self.b(met)


INPUTS = (torch.randn(5, 16, generator=torch.Generator().manual_seed(3)), EDGES)
HOW = [
    "index_add",
    "amax",
    *(pytest.param(how, marks=pytest.mark.nightly) for how in ("scatter_add", "columns", "mean")),
]


def check(target: str, how: str, folder: Path) -> None:
    """The float artifact is the model, and the linear layers of int8 are int8."""
    for precision in ("fp32", "int8"):
        draws = (torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(16))
        artifact = deploykit.export(
            Graph(how),
            target,
            precision,
            example_inputs=INPUTS,
            calibration=[(x, EDGES) for x in draws] if precision == "int8" else None,
            output=folder / precision,
            profile=False,
            progress=False,
        )
        assert artifact.parity.sqnr_db is not None
        assert artifact.parity.sqnr_db > (100.0 if precision == "fp32" else 25.0)
        if precision == "int8":
            layers = {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.macs}
            assert (layers["a"], layers["b"]) == ("int8", "int8")
