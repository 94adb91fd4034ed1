"""EmbeddingBag in every form is written in operators that all targets have, and equals PyTorch on other indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture

IDS, OTHER_IDS = torch.arange(12) % 10, torch.arange(12).flip(0) % 7


class Bags(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(10, 4, **options), nn.Linear(4, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(self.bags(*inputs))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    ("options", "offsets", "others"),
    [
        ({}, [0, 5], [0, 2]),
        ({}, [0, 0, 5], [0, 7, 12]),  # an empty bag in front, one at the end
        ({"include_last_offset": True}, [0, 5, 12], [0, 1, 12]),
        ({"padding_idx": 3}, [0, 5], [0, 6]),
    ],
)
def test_ragged_bags(mode: str, options: dict[str, Any], offsets: list[int], others: list[int]) -> None:
    model = Bags(mode=mode, **options).eval()
    captured = capture(model, example_inputs=(IDS, torch.tensor(offsets)))
    assert not any("embedding_bag" in str(node.target) for node in captured.graph_module.graph.nodes)
    with torch.no_grad():
        want = model(OTHER_IDS, torch.tensor(others))
    torch.testing.assert_close(captured.graph_module(OTHER_IDS, torch.tensor(others))[0], want)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one_size_are_reduced_without_a_mask(mode: str) -> None:
    model = Bags(mode=mode).eval()
    captured = capture(model, example_inputs=(IDS.view(3, 4),))
    assert "matmul" not in {node.name for node in captured.graph_module.graph.nodes}
    with torch.no_grad():
        want = model(OTHER_IDS.view(3, 4))
    torch.testing.assert_close(captured.graph_module(OTHER_IDS.view(3, 4))[0], want)


def test_weighted_bags() -> None:
    model, weights = Bags(mode="sum").eval(), torch.rand(12)
    captured = capture(model, example_inputs=(IDS, torch.tensor([0, 5]), weights))
    with torch.no_grad():
        want = model(OTHER_IDS, torch.tensor([0, 3]), weights)
    torch.testing.assert_close(captured.graph_module(OTHER_IDS, torch.tensor([0, 3]), weights)[0], want)
