"""Batch norms fold into the layer before them, or become mul and add; subgraphs without inputs become constants."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import CapturedModel, capture
from deploykit.testing.models import randomise_batch_norms, seeded


def captured_of(module: nn.Module, *shape: int) -> CapturedModel:
    with seeded(0):
        return capture(randomise_batch_norms(module), example_inputs=(torch.randn(shape),))


def ops(captured: CapturedModel) -> Counter[str]:
    return Counter(o.op.removeprefix("aten.").split(".")[0] for o in captured.origins.values())


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)), (2, 4, 9)),
        ((nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False)), (2, 4, 9, 9)),
        ((nn.Conv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8)), (2, 4, 9, 9)),
        ((nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (1, 2, 5, 5, 5)),
        ((nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False), nn.BatchNorm2d(6)), (1, 4, 5, 5)),
        ((nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)), (1, 4, 5)),
        ((nn.Linear(5, 7), nn.BatchNorm1d(7)), (3, 5)),
        ((nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)), (3, 5)),
    ],
)
def test_batch_norm_folds_into_the_layer_before(layers: tuple[nn.Module, ...], shape: tuple[int, ...]) -> None:
    assert sum(ops(captured_of(nn.Sequential(*layers), *shape)).values()) == 1


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)), (1, 4, 5, 5)),
        ((nn.Linear(5, 7), nn.BatchNorm1d(3)), (2, 3, 5)),
    ],
)
def test_batch_norm_that_cannot_fold_is_a_mul_and_an_add(layers: tuple[nn.Module, ...], shape: tuple[int, ...]) -> None:
    counts = ops(captured_of(nn.Sequential(*layers), *shape))
    assert (counts["mul"], counts["add"], counts["batch_norm"]) == (1, 1, 0)


class SharedConv(nn.Module):
    """One convolution for two branches with batch norms of their own, and a pair that is shared as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.pair = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.bn1(self.conv(x)), self.bn2(self.conv(x + 1))
        return self.pair(self.pair(one)) + two


def test_shared_convolutions_get_weights_per_batch_norm() -> None:
    captured = captured_of(SharedConv(), 1, 3, 8, 8)
    convs = [n for n in captured.graph_module.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    weights = [n.args[1].target for n in convs]
    assert len(convs) == 4
    assert len(set(weights)) == 3  # two for conv, one for the pair


def test_output_read_twice_does_not_fold() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.bn(y)

    assert ops(captured_of(Both(), 1, 3, 4, 4)) == {"conv2d": 1, "mul": 1, "add": 2}


def test_batch_norm_without_statistics_stays() -> None:
    captured = captured_of(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), 2, 3, 4, 4)
    assert ops(captured)["batch_norm"] == 1


def test_subgraphs_without_inputs_become_constants() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 4)
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            positions = torch.arange(x.shape[1]).unsqueeze(0)
            mask = torch.ones(x.shape[1], x.shape[1]).tril().log()
            return (x + self.linear(self.table(positions)).tanh()) * mask.exp().sum()

    captured = captured_of(Positions(), 1, 6, 4)
    assert ops(captured) == {"add": 1, "mul": 1}
    assert len(list(captured.graph_module.buffers())) == 2


def test_neutral_arithmetic_goes() -> None:
    class Neutral(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (1 * (x + torch.zeros(1)) - 0) / torch.ones(4) + 1

    assert ops(captured_of(Neutral(), 2, 4)) == {"add": 1}


def test_neutral_constants_that_change_the_shape_stay() -> None:
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.zeros(3, 1)

    assert ops(captured_of(Grows(), 1, 4)) == {"add": 1}


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, "old weight_norm"]
)
def test_computed_weights_become_plain_weights(wrap: Any) -> None:
    layer = nn.Conv2d(3, 4, 3)
    if wrap == "old weight_norm":
        with pytest.warns(FutureWarning, match="deprecated"):
            nn.utils.weight_norm(layer)
    else:
        wrap(layer)
    names = [name for name, _ in layer.named_parameters()]
    captured = captured_of(nn.Sequential(layer, nn.BatchNorm2d(4)), 1, 3, 8, 8)
    assert ops(captured) == {"conv2d": 1}
    assert [name for name, _ in layer.named_parameters()] == names
    layer(torch.randn(1, 3, 8, 8)).sum().backward()  # nothing fake was left behind
