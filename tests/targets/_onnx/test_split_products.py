"""Products that attention cuts apart, written apart: the same values, one product for each part."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploykit.capture import capture
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_targets._onnx.lower import to_onnx
from deploykit_targets._onnx.split_products import split_products
from deploykit_targets._schemes.gpu import TENSORRT

sys.path.insert(0, str(Path(__file__).parent))
from lowering import run_onnx


class Attention(nn.Module):
    """Queries, keys and values from one layer, in the ways that libraries cut them apart."""

    def __init__(self, cut: str, *, bias: bool = True) -> None:
        super().__init__()
        self.cut, self.joined, self.out = cut, nn.Linear(32, 96, bias=bias), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.joined(x)
        batch, length, _ = values.shape
        if self.cut == "heads first":  # as BLOOM has them
            parts = [part.transpose(1, 2) for part in values.reshape(batch, length, 2, 3, 16).unbind(3)]
        elif self.cut == "select behind permute":
            parts = values.reshape(batch, length, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            if self.cut == "split":
                cut: Any = values.split(32, -1)
            elif self.cut == "uneven slices":  # fewer keys than queries, as grouped queries have them
                cut = values[..., :64], values[..., 64:80], values[..., 80:]
            else:
                cut = values.reshape(batch, length, 3, 32).unbind(2)
            parts = [part.reshape(batch, length, -1, 16).transpose(1, 2) for part in cut]
        found = F.scaled_dot_product_attention(parts[0], *(part.expand_as(parts[0]) for part in parts[1:]))
        return self.out(found.transpose(1, 2).reshape(batch, length, -1)[..., :32])


class Gated(nn.Module):
    """Cut apart for steps between, not for attention."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


def lowered(model: nn.Module) -> tuple[onnx.ModelProto, torch.Tensor]:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 32)
    captured = capture(model.eval(), example_inputs=(x,))
    (name,) = (spec.name for spec in captured.inputs)
    table = calibrate(captured, [{name: x}], progress=False)
    return to_onnx(captured, place(captured, table, TENSORRT).graph_module, opset=19), x


def products(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "MatMul"]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("cut", ["split", "uneven slices", "select", "select behind permute", "heads first"])
def test_parts_are_products_of_their_own_with_the_same_values(cut: str, bias: bool) -> None:
    before, x = lowered(Attention(cut, bias=bias))
    after = copy.deepcopy(before)
    split_products(after)
    onnx.checker.check_model(after)
    joined = [name for name in products(after) if name.startswith("linear.")]
    assert joined == [f"linear.matmul_part_{index}" for index in range(3)]
    assert not [node.name for node in after.graph.node if "linear" in node.input], "nothing reads the joined product"
    assert np.array_equal(run_onnx(before, x)[0], run_onnx(after, x)[0])
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read, "no weight is stored twice"


def test_other_cuts_stay_as_they_are() -> None:
    before, _ = lowered(Gated())
    after = copy.deepcopy(before)
    split_products(after)
    assert after == before


def test_every_layer_is_looked_at() -> None:
    after, _ = lowered(nn.Sequential(Attention("split"), Attention("select")))
    split_products(after)
    assert len([name for name in products(after) if "part" in name]) == 6
