"""Lint rules that are limits of a parser and its builder: axes, windows, attributes, what must be constant.

Each yields `(node, op_type, message)`, as those of `lint_checks.py`; the limits themselves are data in `lint_rules/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

from onnx import AttributeProto, NodeProto, TensorProto, helper

from deploykit_targets._onnx.lint import LintRules
from deploykit_targets._onnx.onnx_view import OnnxView, node_name

Report = tuple[str, str, str]

_WINDOWED = frozenset({"AveragePool", "MaxPool", "LpPool", "Conv", "ConvTranspose"})
_OF_ROWS = frozenset({"ArgMax", "ArgMin", "Softmax", "LogSoftmax", "Hardmax"})
_QUANTIZED = frozenset({TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1})


def _at(node: NodeProto, message: str) -> Report:
    return node_name(node), node.op_type, message


def check_vector(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """No position or softmax is asked of a tensor with one axis, and no reduction of one without axes."""
    for node in view.nodes:
        if not node.input:
            continue
        rank = view.ranks.get(node.input[0])
        if node.op_type in _OF_ROWS and rank == 1:
            yield _at(node, f"reads a tensor with one axis, and {rules.name} wants two: reshape it to one row")
        elif node.op_type.startswith("Reduce") and rank == 0:
            yield _at(node, f"reads a tensor without axes, and {rules.name} wants one: reshape it to one element")


def check_rank(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """No tensor has more axes than the runtime's."""
    for value, rank in view.ranks.items():
        if rules.max_rank and rank > rules.max_rank:
            maker = view.producers.get(value)
            name, kind = (node_name(maker), maker.op_type) if maker is not None else (value, "tensor")
            yield name, kind, f"has {rank} axes; {rules.name} has tensors of at most {rules.max_rank}"


def check_window(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Windows of pools and convolutions have fewer elements than the builder's limit."""
    for node in view.nodes:
        window = next((list(entry.ints) for entry in node.attribute if entry.name == "kernel_shape"), [])
        if node.op_type in _WINDOWED and rules.max_window and prod(window) >= rules.max_window:
            size = " x ".join(map(str, window))
            yield _at(node, f"has a window of {size}; {rules.name} takes fewer than {rules.max_window} elements")


def check_quantized_constant(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Constants of a quantized type go straight into DequantizeLinear, or are its zero point."""
    kinds = {proto.name: proto.data_type for proto in view.graph.initializer}
    for value, kind in kinds.items():
        if kind not in _QUANTIZED:
            continue
        for reader in view.consumers[value]:
            if reader.op_type not in ("DequantizeLinear", "QuantizeLinear"):
                name = TensorProto.DataType.Name(kind).lower()
                yield _at(reader, f"reads the {name} constant {value!r}, which {rules.name} takes before dq alone")


def check_attribute(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Attributes have values that the parser takes."""
    for node in view.nodes:
        for name, allowed in rules.attributes.get(node.op_type, {}).items():
            given = next((entry for entry in node.attribute if entry.name == name), None)
            values = [] if given is None else _listed(given)
            if any(value not in allowed for value in values):
                wanted = " or ".join(map(str, allowed))
                yield _at(node, f"has {name}={', '.join(map(str, values))}; {rules.name} takes {wanted}")


def _listed(entry: AttributeProto) -> list[object]:
    value = helper.get_attribute_value(entry)
    values = list(value) if isinstance(value, list) else [value]
    return [each.decode() if isinstance(each, bytes) else each for each in values]


def check_constant_operand(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Operands that the parser reads while it parses are constant."""
    for node in view.nodes:
        for index in rules.constant_operands.get(node.op_type, ()):
            operand = view.input(node, index)
            if operand is not None and not _is_known(view, operand.value):
                yield _at(node, f"its input {operand.value!r} is computed; {rules.name} wants a constant there")


def _is_known(view: OnnxView, value: str) -> bool:
    """Whether no input of the model takes part in a value; shapes of values are known while parsing."""
    seen, left = set(), [value]
    while left:
        current = left.pop()
        maker = view.producers.get(current)
        if current in seen or view.constant_proto(current) is not None or (maker and maker.op_type == "Shape"):
            continue
        if maker is None:
            return False
        seen.add(current)
        left.extend(name for name in maker.input if name)
    return True


def check_single_output(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Of operators whose further outputs the parser does not have, only the first is read."""
    for node in view.nodes:
        more = [name for name in node.output[1:] if name and (view.consumers[name] or name in view.outputs)]
        if node.op_type in rules.single_output and more:
            yield _at(node, f"its output {more[0]!r} is read; {rules.name} has its first alone")


LIMITS: Mapping[str, Callable[[OnnxView, LintRules], Iterator[Report]]] = {
    "vector": check_vector,
    "rank": check_rank,
    "window": check_window,
    "quantized-constant": check_quantized_constant,
    "attribute": check_attribute,
    "constant-operand": check_constant_operand,
    "single-output": check_single_output,
}
"""Every rule of this module by name."""
