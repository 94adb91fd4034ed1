"""The lint on graphs written by hand: one good graph that both toolchains pass, and one broken graph per rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.contract.errors import UsageError
from deploykit_targets._onnx.lint import errors_of, lint, load_rules

FLOAT = TensorProto.FLOAT


class Graph:
    """Writes a small q/dq model: conv, relu, conv, residual add; every part can be broken by a test."""

    def __init__(self, opset: int = 19) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def pair(self, value: str, name: str, scale: float = 0.05, zero: np.ndarray | None = None) -> str:
        s = self.constant(f"{name}.scale", np.float32(scale))
        z = self.constant(f"{name}.zero", np.int8(0) if zero is None else zero)
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [value, s, z], f"{name}.q"), s, z], name)

    def weight(self, name: str, shape: tuple[int, ...], axis: int = 0, scale_value: float = 0.02) -> str:
        w = self.constant(f"{name}.int8", np.ones(shape, np.int8))
        s = self.constant(f"{name}.scale", np.full(shape[axis], scale_value, np.float32))
        z = self.constant(f"{name}.zero", np.zeros(shape[axis], np.int8))
        return self.node("DequantizeLinear", [w, s, z], name, axis=axis)

    def conv(self, value: str, weight: str, name: str) -> str:
        bias = self.constant(f"{name}.bias", np.zeros(4, np.float32))
        return self.node("Conv", [value, weight, bias], name, pads=[1, 1, 1, 1])

    def model(self, output: str) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", FLOAT, [1, 4, 8, 8])
        y = helper.make_tensor_value_info(output, FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])


def residual(graph: Graph, *, quantize_skip: bool = True) -> onnx.ModelProto:
    """conv -> relu -> conv -> add(skip), placed as the schemes place it."""
    x = graph.pair("x", "x.dq")
    first = graph.node("Relu", [graph.conv(x, graph.weight("w1", (4, 4, 3, 3)), "conv1")], "relu")
    second = graph.conv(graph.pair(first, "relu.dq", 0.03), graph.weight("w2", (4, 4, 3, 3)), "conv2")
    return graph.model(graph.node("Add", [second, x if quantize_skip else "x"], "sum"))


def rules_found(model: onnx.ModelProto, name: str = "tensorrt") -> set[str]:
    return {finding.rule for finding in lint(model, load_rules(name))}


@pytest.mark.parametrize("toolchain", ["tensorrt", "migraphx"])
def test_a_graph_placed_by_the_rules_passes_both(toolchain: str) -> None:
    assert lint(residual(Graph()), load_rules(toolchain)) == ()


def test_a_file_is_read_and_something_else_is_refused(tmp_path: Path) -> None:
    onnx.save(residual(Graph()), tmp_path / "good.onnx")
    assert lint(tmp_path / "good.onnx", load_rules("tensorrt")) == ()
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf")
    with pytest.raises(UsageError, match="cannot be read as an ONNX model"):
        lint(tmp_path / "bad.onnx", load_rules("tensorrt"))
    with pytest.raises(UsageError, match="no lint rules are called 'tensorflow'"):
        load_rules("tensorflow")


def test_rules_may_extend_those_of_another_toolchain() -> None:
    base, rtx = load_rules("tensorrt"), load_rules("tensorrt-rtx")
    assert (rtx.name, rtx.supported, rtx.severities) == ("tensorrt-rtx", base.supported, base.severities)
    assert lint(residual(Graph(opset=21)), rtx) == () and "INT4" in rtx.quantized_types - base.quantized_types
    assert [finding.rule for finding in lint(residual(Graph(opset=21)), base)] == ["opset"]


def uint8_pair(graph: Graph) -> onnx.ModelProto:
    value = graph.pair("x", "x.dq", zero=np.uint8(0))
    return graph.model(graph.conv(value, graph.weight("w", (4, 4, 3, 3)), "conv"))


def affine(graph: Graph) -> onnx.ModelProto:
    value = graph.pair("x", "x.dq", zero=np.int8(3))
    return graph.model(graph.conv(value, graph.weight("w", (4, 4, 3, 3)), "conv"))


def implicit_zero_point(graph: Graph) -> onnx.ModelProto:
    scale = graph.constant("s", np.float32(0.1))
    quantized = graph.node("QuantizeLinear", ["x", scale, graph.constant("z", np.int8(0))], "q")
    value = graph.node("DequantizeLinear", [quantized, scale], "dq")
    return graph.model(graph.conv(value, graph.weight("w", (4, 4, 3, 3)), "conv"))


def zero_scale(graph: Graph) -> onnx.ModelProto:
    weight = graph.weight("w", (4, 4, 3, 3), scale_value=0.0)
    return graph.model(graph.conv(graph.pair("x", "x.dq"), weight, "conv"))


def scales_on_input_channels(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.conv(graph.pair("x", "x.dq"), graph.weight("w", (4, 4, 3, 3), axis=1), "conv"))


def transposed_with_scales_on_axis_0(graph: Graph) -> onnx.ModelProto:
    return graph.model(
        graph.node("ConvTranspose", [graph.pair("x", "x.dq"), graph.weight("w", (4, 6, 3, 3), axis=0)], "up")
    )


def matmul_with_scales_on_rows(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.node("MatMul", [graph.pair("x", "x.dq"), graph.weight("w", (8, 6), axis=0)], "product"))


def per_channel_activation(graph: Graph) -> onnx.ModelProto:
    scale = graph.constant("s", np.full(4, 0.1, np.float32))
    zero = graph.constant("z", np.zeros(4, np.int8))
    value = graph.node("QuantizeLinear", ["x", scale, zero], "q", axis=1)
    value = graph.node("DequantizeLinear", [value, scale, zero], "dq", axis=1)
    return graph.model(graph.conv(value, graph.weight("w", (4, 4, 3, 3)), "conv"))


def int32_bias(graph: Graph) -> onnx.ModelProto:
    bias = graph.constant("b.int32", np.ones(4, np.int32))
    scale, zero = graph.constant("b.scale", np.ones(4, np.float32)), graph.constant("b.zero", np.zeros(4, np.int32))
    value = graph.node("DequantizeLinear", [bias, scale, zero], "b", axis=0)
    inputs = [graph.pair("x", "x.dq"), graph.weight("w", (4, 4, 3, 3)), value]
    return graph.model(graph.node("Conv", inputs, "conv"))


def float_weight_beside_int8(graph: Graph) -> onnx.ModelProto:
    weight = graph.constant("w", np.ones((4, 4, 3, 3), np.float32))
    return graph.model(graph.conv(graph.pair("x", "x.dq"), weight, "conv"))


def float_skip(graph: Graph) -> onnx.ModelProto:
    return residual(graph, quantize_skip=False)


def unequal_concat(graph: Graph) -> onnx.ModelProto:
    both = [graph.pair("x", "a", 0.1), graph.pair("x", "b", 0.2)]
    return graph.model(graph.node("Concat", both, "concat", axis=1))


def half_concat(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.node("Concat", [graph.pair("x", "a", 0.1), "x"], "concat", axis=1))


def pair_behind_pair(graph: Graph) -> onnx.ModelProto:
    value = graph.pair(graph.pair("x", "a", 0.1), "b", 0.1)
    return graph.model(graph.conv(value, graph.weight("w", (4, 4, 3, 3)), "conv"))


def pair_twice(graph: Graph) -> onnx.ModelProto:
    left = graph.conv(graph.pair("x", "a", 0.1), graph.weight("w1", (4, 4, 3, 3)), "conv1")
    right = graph.conv(graph.pair("x", "b", 0.1), graph.weight("w2", (4, 4, 3, 3)), "conv2")
    return graph.model(graph.node("Sub", [left, right], "difference"))


def pair_for_nothing(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.node("Softmax", [graph.pair("x", "x.dq")], "probabilities"))


def unlisted_operator(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.node("Unheard", ["x"], "y"))


def refused_operator(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.node("DFT", ["x"], "y"))


def matmul_behind_a_transposition(graph: Graph) -> onnx.ModelProto:
    """Stored (outputs, inputs) and turned: the output channels are axis 0 of what is dequantized."""
    weight = graph.node("Transpose", [graph.weight("w", (6, 8), axis=1)], "turned", perm=[1, 0])
    return graph.model(graph.node("MatMul", [graph.pair("x", "x.dq"), weight], "product"))


def constant_of_a_refused_type(graph: Graph) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.ones(3, np.complex64))  # which both refuse; float64 only TensorRT
    return graph.model(graph.node("Cast", [graph.node("Constant", [], "k", value=values)], "y", to=FLOAT))


def empty_scale(graph: Graph) -> onnx.ModelProto:
    graph.constant("none", np.zeros(0, np.float32))
    value = graph.node("QuantizeLinear", ["x", "none", graph.constant("z", np.int8(0))], "q")
    value = graph.node("DequantizeLinear", [value, "none", "z"], "dq")
    return graph.model(graph.conv(value, graph.weight("w", (4, 4, 3, 3)), "conv"))


def unequal_pair(graph: Graph) -> onnx.ModelProto:
    quantized = graph.node("QuantizeLinear", ["x", graph.constant("a", np.float32(0.1)), "z"], "q")
    graph.constant("z", np.int8(0))
    value = graph.node("DequantizeLinear", [quantized, graph.constant("b", np.float32(0.3)), "z"], "dq")
    return graph.model(graph.conv(value, graph.weight("w", (4, 4, 3, 3)), "conv"))


def quantize_without_scale(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.node("QuantizeLinear", ["x"], "q"))


def circle(graph: Graph) -> onnx.ModelProto:
    graph.node("Reshape", ["b"], "a")
    return graph.model(graph.node("Conv", [graph.node("Reshape", ["a"], "b"), "a"], "conv"))


BROKEN: dict[Callable[[Graph], onnx.ModelProto], tuple[str, str]] = {
    uint8_pair: ("quantized-type", "x.dq"),
    affine: ("zero-point", "x.dq"),
    implicit_zero_point: ("zero-point", "dq"),
    zero_scale: ("scale", "w"),
    scales_on_input_channels: ("weight-axis", "w"),
    transposed_with_scales_on_axis_0: ("weight-axis", "w"),
    matmul_with_scales_on_rows: ("weight-axis", "w"),
    per_channel_activation: ("activation-granularity", "q"),
    int32_bias: ("float-bias", "b"),
    float_weight_beside_int8: ("half-quantized", "conv"),
    float_skip: ("residual-input", "sum"),
    unequal_concat: ("concat-scales", "concat"),
    half_concat: ("concat-scales", "concat"),
    pair_for_nothing: ("idle-pair", "x.dq"),
    matmul_behind_a_transposition: ("weight-axis", "w"),
    constant_of_a_refused_type: ("element-type", "k"),
    empty_scale: ("scale", "q"),
    unequal_pair: ("pair", "dq"),
    quantize_without_scale: ("structure", "q"),
    circle: ("structure", "b"),
    unlisted_operator: ("operator", "y"),
    refused_operator: ("operator", "y"),
}


@pytest.mark.parametrize("toolchain", ["tensorrt", "migraphx"])
@pytest.mark.parametrize("broken", BROKEN, ids=lambda function: function.__name__)
def test_a_broken_rule_is_named_with_its_node(broken: Callable[[Graph], onnx.ModelProto], toolchain: str) -> None:
    rule, node = BROKEN[broken]
    findings = lint(broken(Graph()), load_rules(toolchain))
    assert {finding.rule for finding in findings} == {rule}
    assert node in {finding.node for finding in findings}
    assert all(rule in str(finding) for finding in findings)


@pytest.mark.parametrize("surplus", [pair_behind_pair, pair_twice])
def test_a_pair_too_many_is_a_finding_where_nothing_folds_it(surplus: Callable[[Graph], onnx.ModelProto]) -> None:
    """NVIDIA's compiler makes the same engine without it."""
    (finding,) = lint(surplus(Graph()), load_rules("migraphx"))
    assert (finding.rule, finding.node) == ("surplus-pair", "b.q")
    assert lint(surplus(Graph()), load_rules("tensorrt")) == ()


def vector(graph: Graph, op: str, **attributes: object) -> onnx.ModelProto:
    row = graph.node("Reshape", ["x", graph.constant("all", np.array([-1]))], "row")
    return graph.model(graph.node(op, [row], "y", axis=0, **attributes))


def large_window(graph: Graph) -> onnx.ModelProto:
    return graph.model(graph.node("AveragePool", ["x"], "y", kernel_shape=[320, 320], ceil_mode=1))


def moved_integers(graph: Graph) -> onnx.ModelProto:
    turned = graph.node("Transpose", [graph.constant("w", np.ones((4, 4, 3, 3), np.int8))], "y", perm=[1, 0, 2, 3])
    scale, zero = graph.constant("s", np.ones(4, np.float32)), graph.constant("z", np.zeros(4, np.int8))
    weight = graph.node("DequantizeLinear", [turned, scale, zero], "w.dq", axis=0)
    return graph.model(graph.conv(graph.pair("x", "x.dq"), weight, "conv"))


def computed_axes(graph: Graph) -> onnx.ModelProto:
    axes = graph.node("Cast", [graph.node("ReduceMax", ["x"], "most", keepdims=0)], "axes", to=TensorProto.INT64)
    axes = graph.node("Reshape", [axes, graph.constant("one", np.array([1]))], "listed")
    return graph.model(graph.node("ReduceSum", ["x", axes], "y"))


def indices_of_a_pool(graph: Graph) -> onnx.ModelProto:
    graph.nodes.append(helper.make_node("MaxPool", ["x"], ["most", "where"], name="y", kernel_shape=[2, 2]))
    return graph.model(graph.node("Cast", ["where"], "cast", to=FLOAT))


def nine_axes(graph: Graph) -> onnx.ModelProto:
    wide = graph.constant("wide", np.array([1, 4, 2, 2, 2, 2, 2, 2, 1]))
    return graph.model(graph.node("Reshape", ["x", wide], "y"))


LIMITS: dict[str, Callable[[Graph], onnx.ModelProto]] = {
    "vector": lambda graph: vector(graph, "Softmax"),
    "vector ArgMax": lambda graph: vector(graph, "ArgMax"),
    "rank": nine_axes,
    "window": large_window,
    "quantized-constant": moved_integers,
    "attribute": lambda graph: graph.model(
        graph.node("AveragePool", ["x"], "y", kernel_shape=[2, 2], dilations=[2, 2])
    ),
    "attribute of ScatterND": lambda graph: graph.model(
        graph.node("ScatterND", ["x", graph.constant("i", np.zeros((1, 1), np.int64)), "x"], "y", reduction="add")
    ),
    "constant-operand": computed_axes,
    "single-output": indices_of_a_pool,
}


@pytest.mark.parametrize("named", LIMITS)
def test_what_the_compiler_refuses_is_an_error_for_tensorrt(named: str) -> None:
    """Each of these was given to TensorRT for RTX 1.7, which refused it; see `provenance`."""
    graph = Graph()
    graph.opset = 20 if "pool" in named or named == "attribute" else 19
    findings = lint(LIMITS[named](graph), load_rules("tensorrt"))
    assert {finding.rule for finding in errors_of(findings)} == {named.partition(" ")[0]}
    assert not {finding.rule for finding in lint(LIMITS[named](Graph()), load_rules("migraphx"))} & set(LIMITS)


def test_a_pair_behind_a_concatenation_makes_its_inputs_alike() -> None:
    graph = Graph()
    joined = graph.node("Concat", [graph.pair("x", "a", 0.1), "x"], "concat", axis=1)
    value = graph.pair(joined, "b", 0.3)
    assert rules_found(graph.model(graph.conv(value, graph.weight("w", (4, 8, 3, 3)), "conv"))) == set()


@pytest.mark.parametrize("toolchain", ["tensorrt", "tensorrt-rtx", "migraphx"])
def test_every_rule_says_who_said_so(toolchain: str) -> None:
    rules = load_rules(toolchain)
    assert set(rules.provenance) == set(rules.severities)
    assert all(len(text) > 20 for text in rules.provenance.values())


def test_scales_on_the_output_channels_pass() -> None:
    graph = Graph()
    up = graph.node("ConvTranspose", [graph.pair("x", "x.dq"), graph.weight("w", (4, 6, 3, 3), axis=1)], "up")
    assert rules_found(graph.model(up)) == set()


def test_operator_tables_differ() -> None:
    graph = Graph()
    model = graph.model(graph.node("Mish", ["x"], "y"))
    assert rules_found(model, "tensorrt") == set()
    assert rules_found(model, "migraphx") == {"operator"}


def test_operators_inside_a_branch_are_seen() -> None:
    inner = helper.make_graph([helper.make_node("Col2Im", ["a", "b", "c"], ["t"], name="inner")], "then", [], [])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "else", [], [])
    graph = Graph()
    graph.node("If", ["x"], "y", then_branch=inner, else_branch=other)
    findings = lint(graph.model("y"), load_rules("tensorrt"))
    assert [finding.node for finding in findings] == ["inner"]


def test_opset_beyond_the_parser_is_an_error_of_the_model() -> None:
    (finding,) = lint(residual(Graph(opset=22)), load_rules("migraphx"))
    assert (finding.rule, finding.node, finding.severity) == ("opset", "", "error")
    assert "opset 22" in finding.message and "1 to 19" in finding.message


def test_weight_only_compression_is_no_half_quantized_op() -> None:
    graph = Graph()
    model = graph.model(graph.node("MatMul", ["x", graph.weight("w", (8, 6), axis=1)], "product"))
    assert rules_found(model) == set()


def test_errors_come_first_and_are_told_from_warnings() -> None:
    graph = Graph()
    value = graph.pair("x", "x.dq", zero=np.int8(1))
    findings = lint(graph.model(graph.node("Softmax", [value], "y")), load_rules("tensorrt"))
    assert [finding.severity for finding in findings] == ["error", "error", "warning"]
    assert len(errors_of(findings)) == 2


def test_a_float64_constant_is_an_error_for_tensorrt() -> None:
    graph = Graph()
    constant = graph.node("Constant", [], "k", value=numpy_helper.from_array(np.ones(3)))
    model = graph.model(graph.node("Add", ["x", graph.node("Cast", [constant], "cast", to=FLOAT)], "y"))
    assert [(f.rule, f.node) for f in lint(model, load_rules("tensorrt"))] == [("element-type", "k")]


def test_a_turned_weight_with_scales_on_its_output_channels_passes() -> None:
    graph = Graph()
    weight = graph.node("Transpose", [graph.weight("w", (6, 8), axis=0)], "turned", perm=[1, 0])
    model = graph.model(graph.node("MatMul", [graph.pair("x", "x.dq"), weight], "product"))
    assert rules_found(model) == set()


@pytest.mark.parametrize("holder", ["If", "Loop"])
def test_pairs_inside_a_branch_or_body_are_checked_with_constants_of_the_outer_graph(holder: str) -> None:
    graph = Graph()
    graph.constant("s", np.float32(0.1))
    graph.constant("z", np.uint8(0))
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["iq"], name="iq"),
        helper.make_node("DequantizeLinear", ["iq", "s", "z"], ["idq"], name="idq"),
        helper.make_node("Relu", ["idq"], ["t"], name="inner"),
    ]
    inner = helper.make_graph(pair, "inner", [], [helper.make_tensor_value_info("t", FLOAT, None)])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "else", [], [])
    graphs = {"then_branch": inner, "else_branch": other} if holder == "If" else {"body": inner}
    found = lint(graph.model(graph.node(holder, ["x"], "y", **graphs)), load_rules("tensorrt"))
    errors = {(finding.rule, finding.node) for finding in errors_of(found)}
    assert errors == {("quantized-type", "iq"), ("quantized-type", "idq")}


def with_external_data(folder: Path) -> Path:
    graph = Graph()
    model = graph.model(graph.conv(graph.pair("x", "x.dq"), graph.weight("w", (4, 4, 3, 3)), "conv"))
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    return folder / "m.onnx"


def test_external_data_is_read_and_its_absence_is_a_usage_error(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    assert lint(path, load_rules("tensorrt")) == ()
    with pytest.raises(UsageError, match="lie in a file that is not loaded"):
        lint(onnx.load(path, load_external_data=False), load_rules("tensorrt"))
    (tmp_path / "m.bin").unlink()
    with pytest.raises(UsageError, match=r"cannot be read as an ONNX model: .*m\.bin"):
        lint(path, load_rules("tensorrt"))


def test_external_data_outside_the_folder_is_a_usage_error(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../m.bin" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="cannot be read as an ONNX model"):
        lint(path, load_rules("tensorrt"))


def test_an_empty_file_and_rules_outside_the_folder_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(UsageError, match="there is no graph"):
        lint(tmp_path / "empty.onnx", load_rules("tensorrt"))
    with pytest.raises(UsageError, match="no lint rules"):
        load_rules("../lint_rules/tensorrt")
