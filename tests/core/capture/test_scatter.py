"""Scatters that reduce, written by comparison: the same numbers as PyTorch's own operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture, scatter

REDUCTIONS = ("sum", "mean", "amax", "amin", "prod")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def places(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1))  # of 5: one place gets nothing


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(
    ("x", "dim", "index", "source"),
    [
        (draw(5, 3), 0, places(7, 3), draw(7, 3)),
        (draw(3, 5), -1, places(3, 7), draw(3, 7)),
        (draw(2, 5, 3), 1, places(2, 4, 3), draw(2, 4, 3)),
        (draw(5, 3), 0, places(4, 2), draw(7, 3)),  # of a part of all columns
        (draw(2, 5, 3), 1, places(1, 4, 2), draw(2, 6, 3)),
        (torch.arange(5), 0, places(9), torch.arange(9)),
    ],
)
def test_a_reduction_is_pytorchs(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, include_self: bool
) -> None:
    want = x.scatter_reduce(dim, index, source, reduce, include_self=include_self)
    got = scatter.scatter_reduce(x, dim, index, source, reduce, include_self=include_self)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want)
    if reduce == "sum" and include_self:
        torch.testing.assert_close(scatter.scatter_add(x, dim, index, source), x.scatter_add(dim, index, source))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_whole_rows_are_one_product(dim: int) -> None:
    x, rows = draw(5, 6, 4), places(7)
    shape = list(x.shape)
    shape[dim] = 7
    source, axis = draw(*shape), dim % 3
    index = rows.reshape([-1 if each == axis else 1 for each in range(3)]).expand(shape) % x.shape[dim]
    want = x.scatter_add(dim, index, source)
    torch.testing.assert_close(scatter.add_rows(x, dim, index, source), want)
    torch.testing.assert_close(
        scatter.index_add(x, dim, rows, source, alpha=0.5), x.index_add(dim, rows, source, alpha=0.5)
    )


def test_what_is_not_met_leaves_no_trace() -> None:
    """An infinity that belongs elsewhere makes no NaN here."""
    source = torch.tensor([1.0, float("inf"), 2.0])
    got = scatter.scatter_add(torch.zeros(3), 0, torch.tensor([0, 1, 0]), source)
    assert got.tolist() == [3.0, float("inf"), 0.0]


class Pooled(nn.Module):
    """Messages along edges, summed for each node, as graph networks do."""

    def forward(self, x: Tensor, nodes: Tensor) -> Tensor:
        return torch.zeros(5, 3).index_add(0, nodes, x)


def test_capture_has_one_form_of_sums_by_row() -> None:
    captured = capture(Pooled(), example_inputs=(draw(7, 3), places(7)))
    names = {str(node.target) for node in captured.graph_module.graph.nodes}
    assert "aten.scatter_add.default" in names and "aten.index_add.default" not in names
