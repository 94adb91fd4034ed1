"""Every family of networks: the captured graph computes the same, and has the form that targets rely on."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
from torch import fx

from deploykit.testing.models import ZOO

ERASED = {"batch_norm", "dropout", "clone", "contiguous", "alias", "detach", "view", "relu_", "addmm", "mm", "bmm"}


def sqnr_db(want: torch.Tensor, have: torch.Tensor) -> float:
    noise = (want - have).double().square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(want.double().square().sum().item() / noise)


def outputs_of(module: torch.nn.Module, example: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = module(**example) if isinstance(example, dict) else module(*example)
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


@pytest.mark.parametrize("name", ZOO)
def test_outputs_equal_the_modules_own_up_to_rounding(zoo: Any, name: str) -> None:
    module, example, captured = zoo(name)
    results = captured.run(captured.example_feeds())
    for want, have in zip(outputs_of(module, example), results.values(), strict=True):
        assert sqnr_db(want, have) >= 100  # float32 rounding of a fold costs no more


@pytest.mark.parametrize("name", ZOO)
def test_graph_is_flat_and_normalised(zoo: Any, name: str) -> None:
    _, _, captured = zoo(name)
    graph = captured.graph_module.graph
    graph.lint()
    assert {n.op for n in graph.nodes} <= {"placeholder", "get_attr", "call_function", "output"}
    for node in graph.nodes:
        if node.op == "call_function":
            assert "val" in node.meta
            assert node.target is operator.getitem or isinstance(node.target, torch._ops.OpOverload)
            assert getattr(node.target, "overloadpacket", node.target).__name__ not in ERASED
    assert not any(p.requires_grad for p in captured.graph_module.parameters())
    assert [n.target for n in graph.nodes if n.op == "placeholder"] == [spec.name for spec in captured.inputs]
    assert isinstance(list(graph.nodes)[-1].args[0], tuple)


@pytest.mark.parametrize("name", ZOO)
def test_every_call_has_an_origin_with_module_and_source_line(zoo: Any, name: str) -> None:
    module, _, captured = zoo(name)
    calls = [n.name for n in captured.graph_module.graph.nodes if n.op == "call_function"]
    assert list(captured.origins) == calls
    paths = {path for path, _ in module.named_modules()}
    assert all(origin.module_path in paths for origin in captured.origins.values())
    if name != "mlp":  # nn.Sequential alone: every line is torch's
        assert all(o.source is not None and o.source.startswith("models.py:") for o in captured.origins.values())


@pytest.mark.parametrize("name", ZOO)
def test_shapes_in_meta_are_those_of_a_real_run(zoo: Any, name: str) -> None:
    _, _, captured = zoo(name)

    class Checked(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, torch.Tensor):
                assert tuple(n.meta["val"].shape) == tuple(result.shape), n.name
                assert n.meta["val"].dtype == result.dtype, n.name
            return result

    with torch.no_grad():
        Checked(captured.graph_module).run(*captured.example_inputs)


@pytest.mark.parametrize("name", ZOO)
def test_no_negative_dim_or_index_is_left(zoo: Any, name: str) -> None:
    _, _, captured = zoo(name)
    for node in captured.graph_module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.name in ("dim", "dims", "index", "dim0", "dim1", "start", "end"):
                assert all(v >= 0 for v in (value if isinstance(value, list | tuple) else [value])), node.format_node()


@pytest.mark.parametrize("name", ["residual_cnn", "two_inputs_dict_output", "transformer_encoder"])
def test_export_program_gives_the_same_graph_and_names(zoo: Any, name: str) -> None:
    _, _, captured = zoo(name)
    program = captured.export_program()
    user = [s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    assert user == [spec.name for spec in captured.inputs]
    ops = [n.target for n in captured.graph_module.graph.nodes if n.op == "call_function"]
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == ops
    with torch.no_grad():
        results = program.module()(*captured.example_inputs)
    for want, have in zip(captured.run(captured.example_feeds()).values(), results, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-6)


def test_high_level_ops_stay_whole(zoo: Any) -> None:
    def ops(name: str) -> set[str]:
        return {origin.op for origin in zoo(name)[2].origins.values()}

    assert {"aten.hardswish.default", "aten.hardsigmoid.default", "aten.conv2d.default"} <= ops("squeeze_excite_cnn")
    assert {"aten.layer_norm.default", "aten.gelu.default", "aten.linear.default"} <= ops("transformer_encoder")
    assert "aten.hardtanh.default" in ops("mobilenet_like")
    assert "aten.lstm.input" in ops("lstm_classifier")
    assert "aten.gru.input" in ops("gru_classifier")


def test_attention_is_two_matmuls_and_a_softmax(zoo: Any) -> None:
    ops = [origin.op for origin in zoo("transformer_encoder")[2].origins.values()]
    assert ops.count("aten.matmul.default") == 4
    assert ops.count("aten.softmax.int") == 2
    assert not any("scaled_dot" in op for op in ops)


def test_shared_module_gives_a_node_for_every_call(zoo: Any) -> None:
    origins = zoo("concat_cnn")[2].origins.values()
    assert [o.module_path for o in origins if o.op == "aten.relu.default"] == ["relu"] * 4


def test_names_of_dict_outputs_and_layout(zoo: Any) -> None:
    captured = zoo("two_inputs_dict_output")[2]
    assert [str(s) for s in captured.outputs] == ["scores: float32[1, 3]", "embedding: float32[1, 16]"]
    assert [(s.name, s.layout) for s in captured.inputs] == [("image", "NCHW"), ("features", None)]


def test_weights_keep_the_names_of_their_modules(zoo: Any) -> None:
    targets = {n.target for n in zoo("residual_cnn")[2].graph_module.graph.nodes if n.op == "get_attr"}
    assert {"conv1.weight", "conv1.bias", "layer2.downsample.0.weight", "fc.weight", "fc.bias"} <= targets
    assert not any("bn" in target or "folded" in target for target in targets)
