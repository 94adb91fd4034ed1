"""Kinds and costs of captured ops, against hand-made counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit_calibration.op_kinds import ACTIVATIONS, LAYERS, MACS, OP_TABLE, kind_of
from deploykit_calibration.products import mac_count, weight_count


def _kinds(function: Callable[[Tensor], Tensor], *shape: int) -> list[str]:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    captured = capture(Model(), example_inputs=(torch.randn(shape),))
    return [kind_of(node) for node in captured.graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("module", "shape", "kind", "macs", "weights"),
    [
        (nn.Conv1d(4, 6, 3), (1, 4, 10), "conv", 6 * 8 * 4 * 3, 6 * 4 * 3),
        (nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 8, 8), "conv", 2 * 6 * 16 * 4 * 9, 6 * 4 * 9),
        (nn.Conv2d(8, 8, 5, groups=8), (1, 8, 9, 9), "conv", 8 * 25 * 25, 8 * 25),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), "conv", 3 * 27 * 2 * 8, 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), "conv_transpose", 4 * 25 * 6 * 4, 4 * 6 * 4),
        (nn.Linear(10, 7), (3, 10), "linear", 3 * 7 * 10, 70),
        (nn.LSTM(4, 5, batch_first=True), (2, 6, 4), "lstm", 2 * 6 * 20 * (4 + 5), 20 * (4 + 5)),
    ],
)
def test_layers_are_counted(module: nn.Module, shape: tuple[int, ...], kind: str, macs: int, weights: int) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: Tensor) -> Tensor:
            result = self.layer(x)
            return result if isinstance(result, Tensor) else result[0]

    graph = capture(Model(), example_inputs=(torch.randn(shape),)).graph_module.graph
    (layer,) = [node for node in graph.nodes if kind_of(node) in MACS]
    assert (kind_of(layer), mac_count(layer), weight_count(layer)) == (kind, macs, weights)


def test_a_matmul_of_activations_is_counted_without_weights() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    graph = capture(Model(), example_inputs=(torch.randn(2, 3, 4), torch.randn(2, 4, 5))).graph_module.graph
    (layer,) = [node for node in graph.nodes if kind_of(node) == "matmul"]
    assert (mac_count(layer), weight_count(layer)) == (2 * 3 * 5 * 4, 0)


def test_kinds_that_depend_on_arguments() -> None:
    functional = nn.functional
    assert _kinds(functional.relu6, 1, 4) == ["relu6"]
    assert _kinds(lambda x: x.clamp(min=0.0), 1, 4) == ["relu"]
    assert _kinds(lambda x: x.clamp(-1.0, 1.0), 1, 4) == ["clip"]
    assert _kinds(lambda x: x.mean((2, 3)), 1, 4, 5, 5) == ["mean"]
    assert _kinds(lambda x: x.mean(-1), 1, 4, 5) == ["other"]
    assert _kinds(lambda x: functional.pad(x, (1, 1)), 1, 4) == ["reshape"]
    assert _kinds(lambda x: functional.pad(x, (1, 1), value=1.0), 1, 4) == ["other"]


def test_the_words_are_consistent() -> None:
    kinds = {spec.kind for spec in OP_TABLE.values()}
    assert MACS <= LAYERS
    assert kinds >= LAYERS | (ACTIVATIONS - {"relu6"})
