"""The residual stream of a transformer is found and left in float; what CNNs add is not touched by that."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
from schemes import SCHEMES
from torch import Tensor, nn

from deploykit.contract.scheme import Inputs, Scheme
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.op_kinds import kind_of
from deploykit_calibration.placement import place
from deploykit_calibration.transformer_residual import residual_stream
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86
from deploykit_targets.coreml.scheme import COREML
from deploykit_targets.litert.scheme import LITERT
from deploykit_targets.tvm.scheme import TVM, TVM_X86

Zoo = Callable[[str], Any]


class Block(nn.Module):
    """Attention with one head, and an MLP; the norm before (pre), behind the sum (post), or behind the branch."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attend(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) * 0.25
        return self.out(scores.softmax(-1) @ self.value(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        def mlp(x: Tensor) -> Tensor:
            return self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]

        if self.norm == "pre":
            x = x + self.attend(self.norm1(x))
            return x + mlp(self.norm2(x))
        if self.norm == "post":
            x = self.norm1(x + self.attend(x))
            return self.norm2(x + mlp(x))  # type: ignore[no-any-return]
        x = x + self.norm1(self.attend(x))
        return x + self.norm2(mlp(x))  # type: ignore[no-any-return]


class Vision(nn.Module):
    """Patches by a strided convolution, a class token, positions, blocks, and a head on the class token."""

    def __init__(self, norm: str = "pre") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(Block(16, norm), Block(16, norm))
        self.final, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.final(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


class ConvNext(nn.Module):
    """Depthwise convolution, norm over channels, two linear layers, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.between = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 12, 2, 2)
        self.stem_norm, self.between_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        self.depthwise = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for width in (8, 12))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in (8, 12))
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for width in (8, 12))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for width in (8, 12))
        self.scales = nn.ParameterList(torch.full((width,), 0.5) for width in (8, 12))
        self.final, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def block(self, x: Tensor, at: int) -> Tensor:
        y = self.norms[at](self.depthwise[at](x).permute(0, 2, 3, 1))
        y = self.downs[at](nn.functional.gelu(self.ups[at](y))) * self.scales[at]
        return x + y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 0)
        x = self.between(self.between_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.head(self.final(self.block(x, 1).mean((2, 3))))  # type: ignore[no-any-return]


class RootMeanSquare(nn.Module):
    """The norm of T5 and Llama, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def norm(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x) + self.two(self.one(x).relu())
        return self.head(self.norm(x))  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["pre", "post", "branch"])
def vision(request: pytest.FixtureRequest, case_of: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return case_of(Vision(request.param), (torch.randn(1, 3, 16, 16),))


@pytest.fixture(scope="module")
def convnext(case_of: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return case_of(ConvNext(), (torch.randn(1, 3, 16, 16),))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_sums_stay_float_and_every_product_is_int8(vision: Any, scheme: Scheme) -> None:
    narrow_too = replace(scheme, min_linear=0, float_head=0.0)  # its layers are a few channels wide, its head is small
    layers = place(vision.captured, vision.table, narrow_too).layers
    assert {layer.reason for layer in layers if layer.kind == "add"} == {"transformer residual stream"}
    products = [kind for kind in ("linear", "matmul") if scheme.rules[kind].inputs is not Inputs.FLOAT]
    assert {layer.precision for layer in layers if layer.kind in products} == {"int8"}


@pytest.mark.parametrize("scheme", [ONNX_X86, LITERT, COREML], ids=lambda scheme: scheme.name)
def test_no_sum_reads_a_rounded_stream(vision: Any, scheme: Scheme) -> None:
    """Branches may be rounded (LiteRT's linear layers are); the stream itself is read as it is."""
    quantized = place(vision.captured, vision.table, scheme)
    stream = residual_stream(GraphView(vision.captured.graph_module.graph)).tensors
    names = {node.name for node in stream}
    assert names.isdisjoint(quantized.integer_outputs)
    for node in quantized.graph_module.graph.nodes:
        if node.name in names and kind_of(node) == "add":
            assert any("quantize" not in str(operand.target) for operand in node.all_input_nodes)


def test_the_stream_has_nothing_of_the_branches(vision: Any) -> None:
    view = GraphView(vision.captured.graph_module.graph)
    stream = residual_stream(view)
    kinds = {view.kinds[node] for node in stream.tensors}
    assert kinds <= {"add", "layer_norm", "reshape", "concat"}
    assert {view.kinds[node] for node in stream.starts} == {"conv"}


def test_the_convolution_that_starts_the_stream(vision: Any) -> None:
    """Float where its kernel would have to round its output; integer inputs and float output elsewhere."""
    for scheme, precision in ((ONNX_X86, "float"), (LITERT, "float"), (TENSORRT, "int8"), (COREML, "int8")):
        quantized = place(vision.captured, vision.table, scheme)
        (conv,) = [layer for layer in quantized.layers if layer.kind == "conv"]
        assert conv.precision == precision
        assert conv.name not in quantized.integer_outputs
    assert conv.module_path == "patches"


def softmax_params(vision: Any, scheme: Scheme, table: Any) -> tuple[float, int]:
    nodes = {node.name: node for node in place(vision.captured, table, scheme).graph_module.graph.nodes}
    assert "quantize" not in str(nodes["softmax"].args[0].target)
    scale, zero_point = nodes["softmax_dq"].args[1:3]
    return scale, zero_point


def test_softmax_has_built_in_parameters_where_kernels_have_them(vision: Any) -> None:
    assert softmax_params(vision, LITERT, vision.table) == (1 / 256, -128)


BOUNDED = pytest.mark.parametrize(
    ("scheme", "steps", "zero_point"),
    [(ONNX_X86, 255, 0), (TENSORRT, 127, 0), (TVM, 255, -128), (TVM_X86, 255, 0), (COREML, 255, -128)],
    ids=lambda value: getattr(value, "name", ""),
)


@BOUNDED
def test_elsewhere_softmax_has_the_range_of_the_largest_that_was_seen(
    vision: Any, scheme: Scheme, steps: int, zero_point: int
) -> None:
    """Of n tokens it gives about 1 / n, of which a range up to 1 leaves a step or two; the largest is never clipped."""
    largest = vision.table.statistics["softmax"].maximum
    assert 0.0 < largest < 0.9, "the case says nothing otherwise"
    scale, found = softmax_params(vision, scheme, vision.table)
    assert found == zero_point and scale == pytest.approx(largest / steps, rel=2e-3)  # some are values of float16


@BOUNDED
def test_a_softmax_that_was_not_seen_reaches_up_to_one(
    vision: Any, scheme: Scheme, steps: int, zero_point: int
) -> None:
    kept = {name: each for name, each in vision.table.statistics.items() if name != "softmax"}
    table = replace(vision.table, statistics=kept)
    assert softmax_params(vision, scheme, table) == (pytest.approx(1 / steps, rel=1e-3), zero_point)


def test_convnext(convnext: Any) -> None:
    layers = {layer.module_path: layer for layer in place(convnext.captured, convnext.table, ONNX_X86).layers}
    assert layers["between"].reason == "starts the transformer residual stream"
    assert all(layers[f"depthwise.{at}"].precision == "int8" for at in (0, 1))
    view = GraphView(convnext.captured.graph_module.graph)
    sums = {op for op in view.ops() if view.kinds[op] == "add"}
    assert sums <= residual_stream(view).tensors


def test_a_written_out_rms_norm(case_of: Callable[..., Any]) -> None:
    case = case_of(RootMeanSquare(), (torch.randn(4, 8),))
    sums = [layer for layer in place(case.captured, case.table, LITERT).layers if layer.kind == "add"]
    assert [layer.reason for layer in sums] == ["transformer residual stream"]


@pytest.mark.parametrize("name", ["residual_cnn", "mobilenet_like", "squeeze_excite_cnn", "unet_like"])
def test_cnns_have_no_stream(zoo: Zoo, name: str) -> None:
    stream = residual_stream(GraphView(zoo(name).captured.graph_module.graph))
    assert not stream.tensors
    assert not stream.starts


def test_the_policy_can_be_overruled(case_of: Callable[..., Any]) -> None:
    """LiteRT's linear layers write integers, so their sums join them where nothing forbids it."""
    case = case_of(Vision("pre"), (torch.randn(1, 3, 16, 16),))
    layers = place(case.captured, case.table, replace(LITERT, residual_policy="int8")).layers
    assert {layer.precision for layer in layers if layer.kind == "add"} == {"int8"}
