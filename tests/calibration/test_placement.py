"""Where q/dq nodes go, scheme by scheme, on convolutional networks and small hand-made graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from schemes import SCHEMES
from torch import Tensor, nn
from torch.fx import Node

from deploykit.contract.errors import UsageError
from deploykit.contract.scheme import FLOAT, Scheme, with_rules
from deploykit_calibration.op_kinds import MACS, kind_of
from deploykit_calibration.placement import QuantizedGraph, place
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86
from deploykit_targets.coreml.scheme import COREML
from deploykit_targets.litert.scheme import LITERT
from deploykit_targets.openvino.scheme import OPENVINO
from deploykit_targets.tvm.scheme import TVM, TVM_X86

Zoo = Callable[[str], Any]
IMAGE = (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
CNNS = ("residual_cnn", "mobilenet_like", "squeeze_excite_cnn", "concat_cnn", "unet_like")


def _nodes(quantized: QuantizedGraph) -> dict[str, Any]:
    return {node.name: node for node in quantized.graph_module.graph.nodes}


def _q(tensor: Any) -> list[Node]:
    return [user for user in tensor.users if "quantize_per_tensor" in str(user.target)]


def _is_dq(node: Any) -> bool:
    return isinstance(node, Node) and "quantized_decomposed.dequantize" in str(node.target)


def _params(dq: Any) -> tuple[Any, ...]:
    return tuple(dq.args[1:3])


def _placed(case: Any, scheme: Scheme, **options: Any) -> QuantizedGraph:
    return place(case.captured, case.table, scheme, **options)


def _reasons(quantized: QuantizedGraph) -> dict[str, str]:
    return {layer.name: layer.reason for layer in quantized.layers if layer.precision == "float"}


def _sqnr_db(case: Any, quantized: QuantizedGraph) -> float:
    signal = noise = 0.0
    with torch.inference_mode():
        for feeds in case.feeds:
            inputs = [feeds[spec.name] for spec in case.captured.inputs]
            pairs = zip(case.captured.graph_module(*inputs), quantized.graph_module(*inputs), strict=True)
            for want, got in pairs:
                signal += float(want.square().sum())
                noise += float((want - got).square().sum())
    return 10 * float(np.log10(signal / noise))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("name", CNNS)
def test_every_scheme_is_close_to_float_on_cnns(zoo: Zoo, name: str, scheme: Scheme) -> None:
    case = zoo(name)
    quantized = _placed(case, scheme)
    floor = 33.0 if scheme.reduce_range else 38.0  # 43 to 69 dB were seen, 38 with 7-bit weights
    assert _sqnr_db(case, quantized) >= floor
    in_int8 = sum(layer.macs for layer in quantized.layers if layer.precision == "int8")
    assert in_int8 >= 0.95 * sum(layer.macs for layer in quantized.layers)
    assert all((layer.precision == "float") == bool(layer.reason) for layer in quantized.layers)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_captured_graph_keeps_its_names_and_its_values(zoo: Zoo, scheme: Scheme) -> None:
    case = zoo("residual_cnn")
    graph = case.captured.graph_module.graph
    before = str(graph)
    quantized = _placed(case, scheme)
    assert str(graph) == before
    kept = [node.name for node in quantized.graph_module.graph.nodes]
    calls = [node.name for node in graph.nodes if node.op in ("placeholder", "call_function", "output")]
    assert [name for name in kept if name in calls] == calls
    assert all("val" in node.meta for node in quantized.graph_module.graph.nodes if node.op == "call_function")


def test_a_tensor_is_rounded_once_and_behind_its_activation(zoo: Zoo) -> None:
    quantized = _placed(zoo("residual_cnn"), ONNX_X86)
    nodes = _nodes(quantized)
    for node in nodes.values():
        assert len(_q(node)) <= 1
    (relu,) = nodes["conv2d"].users
    assert kind_of(relu) == "relu"
    assert [user.name for user in relu.users] == [f"{relu.name}_q"]
    assert _params(nodes[f"{relu.name}_dq"])[1] == 0  # nothing negative: the zero-point is the bottom
    assert set(nodes) >= {"x_q", "x_dq", "conv2d_weight_dq", "conv2d_bias_dq"}


def test_a_skip_connection_shares_the_rounding_of_the_layer_beside_it(zoo: Zoo) -> None:
    quantized = _placed(zoo("residual_cnn"), ONNX_X86)
    pooled = next(node for node in _nodes(quantized).values() if kind_of(node) == "max_pool")
    (q,) = pooled.users
    (dq,) = q.users
    assert {kind_of(user) for user in dq.users} == {"conv", "add"}


def test_the_output_of_the_graph_is_not_rounded(zoo: Zoo) -> None:
    for scheme in SCHEMES.values():
        quantized = _placed(zoo("residual_cnn"), scheme)
        (result,) = quantized.graph_module.graph.output_node().all_input_nodes
        assert _is_dq(result) != scheme.float_outputs
    reasons = _reasons(_placed(zoo("unet_like"), ONNX_X86))
    assert reasons["conv2d_10"] == "graph output"
    assert "conv2d_10" not in _reasons(_placed(zoo("unet_like"), OPENVINO))


def test_a_large_layer_whose_kernel_writes_integers_is_rounded_also_where_it_is_returned(
    case_of: Callable[..., Any],
) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.large, self.small = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 1, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.body(x).relu()
            z = self.large(y)
            return z, self.small(y), torch.cat([z.flatten(1), y.flatten(1)], 1)

    case = case_of(Heads(), (torch.randn(1, 3, 12, 12),))
    quantized = _placed(case, ONNX_X86)
    assert _reasons(quantized) == {"conv2d_2": "graph output", "cat": "graph output"}
    assert "conv2d_1" in quantized.integer_outputs
    for scheme in (OPENVINO, TENSORRT, COREML):  # their kernels may write float: they need not round what is returned
        assert "conv2d_1" not in _placed(case, scheme).integer_outputs
    assert _reasons(_placed(case, replace(ONNX_X86, output_share=1.0))).get("conv2d_1") == "graph output"


def test_linear_has_an_int32_bias_of_the_scale_of_its_products(zoo: Zoo) -> None:
    case = zoo("mlp")
    quantized = _placed(case, ONNX_X86)
    module, nodes = quantized.graph_module, _nodes(quantized)
    for linear in (node for node in nodes.values() if kind_of(node) == "linear"):
        data, weight, bias = linear.args
        assert _is_dq(data), "the input"
        assert "dequantize_per_channel" in str(weight.target)
        assert "dequantize_per_channel" in str(bias.target)
        weight_scales, bias_scales = (getattr(module, node.args[1].target) for node in (weight, bias))
        torch.testing.assert_close(bias_scales, weight_scales * data.args[1], rtol=1e-6, atol=0.0)
        values = getattr(module, bias.args[0].target)
        assert values.dtype == torch.int32
        assert not _q(linear), "a linear layer writes float"


def test_scales_are_exact_in_float32(zoo: Zoo) -> None:
    for node in _nodes(_placed(zoo("concat_cnn"), ONNX_X86)).values():
        if "per_tensor" in str(node.target):
            assert float(np.float32(node.args[1])) == node.args[1] > 0


def test_seven_bit_weights_cannot_saturate(zoo: Zoo) -> None:
    module = _placed(zoo("mobilenet_like"), SCHEMES["onnx-x86-no-vnni"]).graph_module
    weights = [buffer for name, buffer in module.named_buffers() if name.endswith("_weight_q")]
    assert len(weights) == 11
    assert all(int(weight.min()) >= -64 and int(weight.max()) <= 63 for weight in weights)


def test_a_concat_has_one_scale_on_every_side(zoo: Zoo) -> None:
    for scheme in (ONNX_X86, LITERT, COREML):
        nodes = _nodes(_placed(zoo("unet_like"), scheme))
        for concat in (node for node in nodes.values() if kind_of(node) == "concat"):
            sides = [*concat.args[0], nodes[f"{concat.name}_dq"]]
            assert all(_is_dq(side) for side in sides)
            assert len({_params(side) for side in sides}) == 1


def test_a_pool_keeps_the_scale_of_its_input(zoo: Zoo) -> None:
    nodes = _nodes(_placed(zoo("residual_cnn"), ONNX_X86))
    assert _params(nodes["max_pool2d"].args[0]) == _params(nodes["max_pool2d_dq"])


def test_what_has_no_kernel_stays_float_and_says_so(zoo: Zoo) -> None:
    for scheme in (ONNX_X86, LITERT):
        quantized = _placed(zoo("unet_like"), scheme)
        (layer,) = [layer for layer in quantized.layers if layer.kind == "conv_transpose"]
        assert layer.reason == "target has no int8 kernel for conv_transpose"
        node = _nodes(quantized)[layer.name]
        assert node.args[1].op == "get_attr", "its weight is untouched"
    for name, kind in (("lstm_classifier", "lstm"), ("gru_classifier", "gru")):
        quantized = _placed(zoo(name), ONNX_X86)
        assert [layer.reason for layer in quantized.layers if layer.kind == kind] == [
            "recurrent layers have no static int8 kernel"
        ]


def test_tensorrt_rounds_inputs_and_only_the_skip_of_a_residual(zoo: Zoo) -> None:
    quantized = _placed(zoo("residual_cnn"), TENSORRT)
    nodes = _nodes(quantized).values()
    for node in nodes:
        if "per_tensor" in str(node.target):
            assert node.args[2] == 0
            assert node.args[-1] == torch.int8
        if kind_of(node) == "add":
            assert sorted(_is_dq(operand) for operand in node.args) == [False, True]
            fused = next(operand for operand in node.args if not _is_dq(operand))
            assert kind_of(fused) == "conv"
            assert list(fused.users) == [node]
        if kind_of(node) in MACS:
            assert not _q(node) or len(node.users) == 1  # only a shortcut convolution is rounded, for its sum
            assert node.args[2].op == "get_attr", "the bias stays float"
    assert not quantized.integer_outputs


def test_litert_writes_integers_everywhere_and_keeps_float_weights(zoo: Zoo) -> None:
    quantized = _placed(zoo("mlp"), LITERT)
    for linear in (node for node in _nodes(quantized).values() if kind_of(node) == "linear"):
        dq = linear.args[1]
        quantize = dq.args[0]
        assert "quantize_per_channel" in str(quantize.target)
        assert quantize.args[0].op == "get_attr"
        assert quantize.args[0].meta["val"].dtype == torch.float32
        bias = linear.args[2]
        assert "dequantize_per_channel" in str(bias.target)
        assert bias.args[0].op == "get_attr" and bias.args[0].meta["val"].dtype == torch.int32
    folded = _placed(zoo("mlp"), replace(LITERT, weights="folded"))
    inputs = [zoo("mlp").feeds[0][spec.name] for spec in zoo("mlp").captured.inputs]
    for one, other in zip(quantized.graph_module(*inputs), folded.graph_module(*inputs), strict=True):
        assert torch.equal(one, other)


def test_built_in_parameters_are_used(case_of: Callable[..., Any]) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.sigmoid(self.one(x)) * torch.tanh(self.two(x)))  # type: ignore[no-any-return]

    nodes = _nodes(_placed(case_of(Gated(), (torch.randn(1, 3, 6, 6),)), LITERT))
    assert _params(nodes["sigmoid_dq"]) == (1 / 256, -128)
    assert _params(nodes["tanh_dq"]) == (1 / 128, 0)


@pytest.mark.parametrize(("scheme", "middle"), [(TVM, 0), (TVM_X86, 128)], ids=["int8", "uint8"])
def test_the_second_operand_of_a_product_is_centred_where_kernels_need_it(
    zoo: Zoo, scheme: Scheme, middle: int
) -> None:
    nodes = _nodes(_placed(zoo("transformer_encoder"), scheme))
    products = [node for node in nodes.values() if kind_of(node) == "matmul"]
    assert products
    for product in products:
        assert _params(product.args[1])[1] == middle
    assert any(_params(product.args[0])[1] not in (0, 128) for product in products)


def test_layers_with_one_weight_share_its_integers(case_of: Callable[..., Any]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).relu())  # type: ignore[no-any-return]

    quantized = _placed(case_of(Twice(), (torch.randn(1, 3, 8, 8),)), TENSORRT)
    first, second = (node for node in _nodes(quantized).values() if kind_of(node) == "conv")
    assert first.args[1] is second.args[1]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (1, 4, 12)),
        (nn.Conv3d(2, 4, 2), (1, 2, 4, 4, 4)),
        (nn.Conv2d(4, 8, 3, groups=4, bias=False), (1, 4, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5)),
    ],
)
def test_convolutions_of_every_rank_and_grouping(
    case_of: Callable[..., Any], module: nn.Module, shape: tuple[int, ...]
) -> None:
    case = case_of(module, (torch.randn(shape),))
    quantized = _placed(case, COREML)
    assert _reasons(quantized) == {}
    assert _sqnr_db(case, quantized) > 37.0


def test_a_dead_input_and_dead_weights_are_harmless(case_of: Callable[..., Any]) -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            nn.init.constant_(self.one.bias, -1e6)  # type: ignore[arg-type]
            nn.init.zeros_(self.two.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu()).relu() + 1.0  # type: ignore[no-any-return]

    case = case_of(Dead(), (torch.randn(1, 3, 4, 4),))
    for scheme in SCHEMES.values():
        inputs = [case.feeds[0][spec.name] for spec in case.captured.inputs]
        (want,), (got,) = case.captured.graph_module(*inputs), _placed(case, scheme).graph_module(*inputs)
        torch.testing.assert_close(got, want, rtol=0.01, atol=0.01)  # half a step of a range of at most 2


def test_include_and_exclude(zoo: Zoo) -> None:
    case = zoo("residual_cnn")
    reasons = _reasons(_placed(case, ONNX_X86, exclude=("fc", "layer1.*")))
    assert set(reasons.values()) >= {"excluded by pattern 'fc'", "excluded by pattern 'layer1.*'"}
    included = _placed(case, ONNX_X86, include=("layer2",))
    assert {layer.module_path.split(".")[0] for layer in included.layers if layer.precision == "int8"} == {"layer2"}
    with pytest.raises(UsageError, match="matches no layer"):
        _placed(case, ONNX_X86, exclude=("layer9",))


def test_a_layer_without_statistics_stays_float(zoo: Zoo) -> None:
    case = zoo("residual_cnn")
    without = {name: value for name, value in case.table.statistics.items() if name != "x"}
    reasons = _reasons(place(case.captured, replace(case.table, statistics=without), ONNX_X86))
    assert reasons["conv2d"].startswith("no calibration statistics for its input x: a finished table")
    assert "conv2d_1" not in reasons


def test_masks_and_what_comes_from_integers_are_never_rounded(case_of: Callable[..., Any]) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 4)
            self.frequencies = nn.Buffer(torch.rand(1, 6))

        def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
            angles = positions.unsqueeze(-1).float() @ self.frequencies
            hidden = self.one(x) + (1.0 - mask.float()) * -1e4
            return self.two(hidden * angles.cos())  # type: ignore[no-any-return]

    case = case_of(Masked(), (torch.randn(5, 6), torch.ones(5, 6, dtype=torch.int64), torch.arange(5)))
    for scheme in SCHEMES.values():
        quantized = _placed(case, scheme)
        computed = "an operand is a constant, a mask, or computed from integers"
        assert [layer.reason for layer in quantized.layers if layer.kind == "matmul"] in ([computed], [])
        rounded = {node.name for node in _nodes(quantized).values() if _q(node)}
        assert "mask" not in rounded
        assert not any(name.startswith(("rsub", "cos", "add")) for name in rounded)


def test_a_rule_can_be_replaced(zoo: Zoo) -> None:
    scheme = replace(ONNX_X86, rules=with_rules(ONNX_X86, add=FLOAT))
    quantized = _placed(zoo("residual_cnn"), scheme)
    assert {layer.reason for layer in quantized.layers if layer.kind == "add"} == {"onnx-x86 keeps add in float"}


class Shared(nn.Module):
    """A pool and a concatenation read one value, as in a U-Net; a mean reads what a convolution reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(32, 32, 1)
        self.head, self.gate = nn.Linear(32, 24), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        value = self.one(x).relu()
        down = self.two(nn.functional.max_pool2d(value, 2))
        joined = torch.cat([value, nn.functional.interpolate(down, size=value.shape[-2:], mode="bilinear")], 1)
        deep = self.three(joined).relu()
        return self.head(deep.mean((2, 3))) + nn.functional.avg_pool2d(value, 30).flatten(1).mean(1, keepdim=True)


def test_what_two_ops_want_as_integers_is_written_once_for_what_only_moves_or_averages_it(case_of: Any) -> None:
    """By the listings of NVIDIA's compiler: else the skip connection of a U-Net is moved in float beside its int8."""
    torch.manual_seed(0)
    quantized = _placed(case_of(Shared(), (torch.randn(1, 3, 32, 32),)), TENSORRT)
    nodes = _nodes(quantized)
    assert len(_q(nodes["relu"])) == 1
    readers = {reader.name for q in _q(nodes["relu"]) for dq in q.users for reader in dq.users}
    assert {"max_pool2d", "cat", "avg_pool2d"} <= readers
    assert "mean" in _reasons(quantized), "rounding for the sake of an average alone gains nothing"


def test_a_small_classifier_that_is_returned_stays_float_and_a_large_one_does_not(case_of: Any) -> None:
    torch.manual_seed(0)
    small = case_of(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.AvgPool1d(900), nn.Linear(64, 32)), IMAGE)
    reason = "returned, and less than 2% of the multiply-accumulates: exact in float"
    assert _reasons(_placed(small, TENSORRT))["linear"] == reason
    alone = _placed(small, TENSORRT, include=["3"])
    assert {layer.name for layer in alone.layers if layer.precision == "int8"} == {"linear"}, "as it was asked for"
    large = case_of(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32)), (torch.randn(2, 64),))
    assert not _reasons(_placed(large, TENSORRT))


def test_residual_policies(zoo: Zoo) -> None:
    quantized = _placed(zoo("residual_cnn"), replace(ONNX_X86, residual_policy="float"))
    assert {layer.precision for layer in quantized.layers if layer.kind == "add"} == {"float"}


@pytest.mark.parametrize("scheme", [ONNX_X86, LITERT, TENSORRT], ids=lambda scheme: scheme.name)
def test_the_result_can_be_exported(zoo: Zoo, scheme: Scheme) -> None:
    case = zoo("concat_cnn")
    quantized = _placed(case, scheme)
    program = case.captured.export_program(quantized.graph_module)
    inputs = [case.feeds[0][spec.name] for spec in case.captured.inputs]
    assert torch.equal(quantized.graph_module(*inputs)[0], program.module()(*inputs)[0])


class Windows(nn.Module):
    """Windows as Swin makes them: reshape, transpose, reshape over six axes, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.before(x).reshape(1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(4, 4, 8)
        return torch.relu(self.after(windows)).mean(1)


def test_tensors_of_more_axes_than_a_target_has_are_not_rounded(case_of: Callable[..., Any]) -> None:
    case = case_of(Windows(), (torch.randn(1, 4, 4, 8),))
    quantized = _placed(case, COREML)
    ranks = [node.meta["val"].dim() for node in _nodes(quantized).values() if _is_dq(node)]
    assert max(ranks) <= COREML.max_rank == 5
    reasons = set(_reasons(quantized).values())
    assert [layer.precision for layer in quantized.layers if layer.kind == "linear"] == ["int8", "int8"]
    assert all("axes" in reason for reason in reasons if "reshape" in reason)
    unlimited = _placed(case, replace(COREML, max_rank=0))
    assert max(node.meta["val"].dim() for node in _nodes(unlimited).values() if _is_dq(node)) == 6
    assert _sqnr_db(case, quantized) > 35.0
