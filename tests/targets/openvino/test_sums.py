"""A convolution that a sum is fused to does not round before it, in the file's runtime and in its simulation."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from deploykit.contract.host import this_host
from deploykit.testing.lowering import lowering, median_db
from deploykit_calibration.simulate import fake_quantize
from deploykit_targets.openvino.sums import clamp_before_sums

_EXACT_DB = 75.0  # a rounding that the runtime leaves out costs the simulation all but 50 to 60 dB


class _Block(nn.Module):
    """Two branches, each of them a convolution that only the sum reads; or one, beside what was pooled."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.last, self.pooled = nn.Conv2d(16, 8, 3), pooled

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        other = nn.functional.max_pool2d(h, 3, 1, 1) if self.pooled else self.right(h)
        return self.last(other + self.left(h)).mean((2, 3))


@pytest.mark.skipif(not this_host().has("vnni"), reason="without VNNI OpenVINO computes these files in float32")
@pytest.mark.parametrize("pooled", [False, True], ids=["two convolutions", "beside what was pooled"])
def test_the_simulation_rounds_where_the_runtime_does(tmp_path: Path, pooled: bool) -> None:
    link = lowering(lambda: (_Block(pooled=pooled), torch.rand(4, 3, 12, 12)), "x86-cpu:openvino", tmp_path / "a")
    assert median_db(link) > _EXACT_DB


def _simulated(*, own: bool) -> GraphModule:
    """The sum of what a convolution gives and another term: the layer's own input, or that rounded once more."""
    graph = Graph()
    source, weight = graph.placeholder("x"), graph.placeholder("weight")
    x = graph.call_function(fake_quantize, (source, 0.1, -128, 127))
    layer = graph.call_function(torch.ops.aten.conv2d.default, (x, weight))
    y = graph.call_function(fake_quantize, (layer, 0.2, -100, 155))
    activated = graph.call_function(torch.ops.aten.relu.default, (x,))
    other = x if own else graph.call_function(fake_quantize, (activated, 0.1, -128, 127))
    total = graph.call_function(torch.ops.aten.add.Tensor, (other, y))
    graph.output((graph.call_function(fake_quantize, (total, 0.3, -128, 127)), activated))
    return GraphModule({}, graph)


@pytest.mark.parametrize("own", [False, True], ids=["fused", "the layer reads the other term"])
def test_only_a_sum_that_is_fused_loses_a_rounding(own: bool) -> None:
    module = _simulated(own=own)
    clamp_before_sums(module)
    clamps = [node for node in module.graph.nodes if node.target is torch.ops.aten.clamp.default]
    assert [node.args[1:] for node in clamps] == ([] if own else [(-20.0, 31.0)])
