"""One function per lint rule, yielding `(node, op_type, message)`; which rules hold where is data in `lint_rules/`.

Each is called once per graph: the model's own, and those inside `If`, `Loop` and `Scan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto

from deploykit_targets._onnx.lint import LintRules
from deploykit_targets._onnx.lint_limits import LIMITS
from deploykit_targets._onnx.onnx_view import MOVES, OnnxView, attribute, node_name

Report = tuple[str, str, str]
Check = Callable[[OnnxView, LintRules], Iterator[Report]]

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Ops with int8 kernels, or that pass integers on: a q/dq pair in front of one of them serves something.
_QUANTIZABLE = _WEIGHTED | MOVES | {"Add", "AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMean", "Concat"}
_QUANTIZABLE |= {"Resize", "Slice", "Split", "Einsum", "Mul", "LSTM", "GRU", "RNN"}


def _at(node: NodeProto, message: str) -> Report:
    return node_name(node), node.op_type, message


def _pairs(view: OnnxView) -> Iterator[NodeProto]:
    return (node for node in view.nodes if node.op_type in (_Q, _DQ) and not _lacks_operand(view, node))


def _lacks_operand(view: OnnxView, node: NodeProto) -> bool:
    return view.input(node, 0) is None or view.input(node, 1) is None


def check_structure(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """The graph can be computed: no node waits for itself, and q/dq have a value and a scale."""
    if circle := view.cycle():
        names = " -> ".join(node_name(node) for node in (*circle, circle[0]))
        yield _at(circle[0], f"waits for its own result: {names}")
    for node in view.nodes:
        if node.op_type in (_Q, _DQ) and _lacks_operand(view, node):
            yield _at(node, f"has {len(node.input)} input(s); it needs a value, a scale and a zero point")


def check_opset(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """The standard operator set is one that the parser reads."""
    if view.outer is None and not rules.min_opset <= view.opset <= rules.max_opset:
        wanted = f"{rules.min_opset} to {rules.max_opset}"
        yield "", "", f"the model uses opset {view.opset}; {rules.name} reads {wanted}"


def check_operator(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Every operator is in the parser's published table; functions that the model brings along are expanded."""
    functions = {(function.domain, function.name) for function in view.model.functions}
    for node in view.nodes:
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in ("", "ai.onnx"):
            yield _at(node, f"operator of domain {node.domain!r}; {rules.name} reads standard operators")
        elif node.op_type in rules.unsupported:
            yield _at(node, f"{rules.name} lists it as not supported ({rules.source})")
        elif node.op_type not in rules.supported:
            yield _at(node, f"{rules.name} does not list it ({rules.source})")


def check_element_type(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """No input, output or constant, as an initialiser or as a node, has a type that the parser refuses."""
    for name, op_type, code in _typed(view):
        if TensorProto.DataType.Name(code) in rules.element_types_refused:
            yield name, op_type, f"has type {TensorProto.DataType.Name(code)}, which {rules.name} refuses or narrows"


def _typed(view: OnnxView) -> Iterator[tuple[str, str, int]]:
    for proto in view.graph.initializer:
        yield proto.name, "tensor", proto.data_type
    for info in (*view.graph.input, *view.graph.output):
        yield info.name, "tensor", info.type.tensor_type.elem_type
    for node in view.nodes:
        if node.op_type in ("Constant", "ConstantOfShape"):
            for entry in node.attribute:
                if entry.type == AttributeProto.TENSOR:
                    yield node_name(node), node.op_type, entry.t.data_type
                elif entry.type in (AttributeProto.STRING, AttributeProto.STRINGS):
                    yield node_name(node), node.op_type, TensorProto.STRING


def check_quantized_type(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """q/dq use a type that the runtime has kernels for: int8, and fp8 where the silicon has it."""
    wanted = ", ".join(sorted(name.lower() for name in rules.quantized_types))
    for node in _pairs(view):
        code = view.quantized_type(node)
        if code is None or _feeds_bias(view, node):
            continue
        name = TensorProto.DataType.Name(code)
        if name not in rules.quantized_types:
            yield _at(node, f"quantizes to {name.lower()}; {rules.name} wants {wanted}")


def check_zero_point(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Zero points are given, constant and zero: quantization is symmetric, and MIGraphX matches on the third input."""
    for node in _pairs(view):
        operand = view.input(node, 2)
        if operand is None:
            yield _at(node, "has no zero point; give a constant one of zeros")
            continue
        values = view.constant(operand.value)
        if values is None:
            yield _at(node, f"its zero point {operand.value!r} is not a constant")
        elif np.any(values.astype(np.float32) != 0):
            yield _at(node, f"has zero point {values.ravel()[0]}; quantization must be symmetric")


def check_scale(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Scales are constant, finite and above zero."""
    for node in _pairs(view):
        values = view.constant(node.input[1])
        if values is None:
            yield _at(node, f"its scale {node.input[1]!r} is not a constant")
            continue
        values = values.astype(np.float32)
        if not values.size:
            yield _at(node, "has an empty scale; give one value, or one per channel")
        elif not np.all(np.isfinite(values)) or np.any(values <= 0):
            yield _at(node, f"has a scale that is not finite and above zero (smallest: {values.min()})")


def check_pair(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """What quantized a value and what dequantizes it have the same scale and zero point: together they only round."""
    for node in _pairs(view):
        maker = view.origin(node.input[0]) if node.op_type == _DQ else None
        if maker is None or maker.op_type != _Q or _lacks_operand(view, maker):
            continue
        for index, what in ((1, "scale"), (2, "zero point")):
            here, there = _parameter(view, node, index), _parameter(view, maker, index)
            if here is None or there is None or _equal(here, there):
                continue
            yield _at(node, f"has {what} {_short(here)} behind {node_name(maker)} with {_short(there)}; give them one")


def _parameter(view: OnnxView, node: NodeProto, index: int) -> np.ndarray | None:
    """Scale or zero point of a q/dq node; a zero point that is left out is 0, and one computed is None."""
    operand = view.input(node, index)
    values = np.zeros(1) if operand is None else view.constant(operand.value)
    return None if values is None else values.astype(np.float32).ravel()


def _equal(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal as parameters: one value stands for as many as there are."""
    if not left.size or not right.size or 1 not in (left.size, right.size):
        return np.array_equal(left, right, equal_nan=True)
    return bool(np.all((left == right) | (np.isnan(left) & np.isnan(right))))


def _short(values: np.ndarray) -> str:
    listed = ", ".join(f"{value:.6g}" for value in values[:3])
    return f"[{listed}{', ...' if values.size > 3 else ''}]" if values.size != 1 else listed


def check_weight_axis(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Per-channel scales of weights lie on the axis of the output channels."""
    for node in view.nodes:
        weight = view.input(node, 1) if node.op_type in _WEIGHTED else None
        if weight is None or not view.is_constant(weight.value):
            continue
        source, moves = _dequantizer(view, weight.value)
        if source is None or _lacks_operand(view, source):
            continue
        scale, rank = view.constant(source.input[1]), _rank(view, source.input[0])
        if scale is None or scale.ndim != 1 or scale.size == 1 or rank is None:  # blocks have as many axes as weights
            continue
        axis, wanted = attribute(source, "axis", 1) % rank, _channel_axis(node, rank)
        for move in moves:
            wanted = _before(move, wanted, rank)
        if axis != wanted:
            yield _at(source, f"scales of {node.op_type} weights lie on axis {axis}; output channels are axis {wanted}")


def _dequantizer(view: OnnxView, value: str) -> tuple[NodeProto | None, list[NodeProto]]:
    """The dq node behind a weight, and the transpositions between them from the weighted op backwards.

    Other moves split or merge axes, so that an axis cannot be followed through them: there is no answer then.
    """
    moves: list[NodeProto] = []
    for source in view.back(value, {"Transpose", "Identity"}):
        node = view.producers.get(source)
        if node is not None and node.op_type == _DQ:
            return node, moves
        if node is not None and node.op_type == "Transpose":
            moves.append(node)
    return None, []


def _before(transpose: NodeProto, axis: int, rank: int) -> int:
    """Where an axis of what Transpose gives lies in what it reads; without `perm` it turns all axes around."""
    perm = next((list(entry.ints) for entry in transpose.attribute if entry.name == "perm"), None)
    perm = perm or list(reversed(range(rank)))
    return perm[axis] if axis < len(perm) else axis


def _channel_axis(node: NodeProto, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1


def _rank(view: OnnxView, value: str) -> int | None:
    """Axes of a constant, seen through ops that keep their number."""
    for source in view.back(value, {_Q, "Cast", "Transpose", "Identity"}):
        proto = view.constant_proto(source)
        if proto is not None:
            return len(proto.dims) or None
    return None


def check_activation_granularity(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Activations have one scale per tensor."""
    for node in _pairs(view):
        scale = view.constant(node.input[1])
        if scale is not None and scale.size > 1 and not view.is_constant(node.input[0]):
            yield _at(node, f"has {scale.size} scales on an activation; activations take one per tensor")


def check_float_bias(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Biases stay float: neither runtime takes the int32 form of ONNX Runtime."""
    for node in _pairs(view):
        if node.op_type == _DQ and _feeds_bias(view, node):
            yield _at(node, "dequantizes an int32 bias; give the bias in float")


def _feeds_bias(view: OnnxView, node: NodeProto) -> bool:
    return view.quantized_type(node) == TensorProto.INT32 and view.is_constant(node.input[0])


def check_half_quantized(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """A weighted op has both inputs dequantized or none; with one of them it runs in float beside a dequantize."""
    for node in view.nodes:
        if node.op_type not in _WEIGHTED or len(node.input) < 2:
            continue
        dequantized = [view.is_dequantized(value) for value in node.input[:2]]
        if dequantized == [True, False]:
            yield _at(node, f"its second input {node.input[1]!r} is float beside a dequantized first: it runs in float")
        elif dequantized == [False, True] and not _is_weight_only(view, node):
            yield _at(node, f"its first input {node.input[0]!r} is float beside a dequantized second: it runs in float")


def _is_weight_only(view: OnnxView, node: NodeProto) -> bool:
    """Weight-only compression: meant to run in float, and so in every weighted op of the model."""
    return view.is_constant(node.input[1]) and not any(
        consumer.op_type in _WEIGHTED
        for dq in _pairs(view)
        if dq.op_type == _DQ and not view.is_constant(dq.input[0])
        for consumer in view.consumers[dq.output[0]]
    )


def check_residual_input(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """The skip connection of an addition that an int8 convolution is fused with is dequantized too.

    NVIDIA's guide: an addition behind a weighted layer is fused with it, and the type of the other operand is the type
    of the whole; NVIDIA's compiler 1.7 fuses both forms, and the float one moves four times the bytes. Fused is a
    convolution that writes straight into the addition and that nothing else reads; an operand that is scaled on its
    way (`alpha`) has no place in the fused form. The schemes place by the same rule.
    """
    for node in view.nodes:
        if node.op_type != "Add" or any(view.is_constant(value) or _is_scaled(view, value) for value in node.input):
            continue
        fused = [_is_fused_convolution(view, value) for value in node.input]
        dequantized = [view.is_dequantized(value) for value in node.input]
        if any(fused) and not any(dequantized):
            side = node.input[1 if fused[0] else 0]
            yield _at(
                node, f"adds {side!r} in float to an int8 convolution: in int8 it would be a quarter of the bytes"
            )


def _is_fused_convolution(view: OnnxView, value: str) -> bool:
    """A convolution of int8 inputs, or batch normalisation behind one, whose result only one op reads."""
    for source in view.back(value, {"BatchNormalization"}):
        if len(view.consumers[source]) != 1 or source in view.outputs:
            return False
        node = view.producers.get(source)
        if node is not None and node.op_type == "Conv":
            return bool(node.input) and view.is_dequantized(node.input[0])
    return False


def _is_scaled(view: OnnxView, value: str) -> bool:
    """A product with one constant number that was made for its only reader."""
    node = view.producers.get(value)
    if node is None or node.op_type != "Mul" or len(view.consumers[value]) != 1:
        return False
    factors = [proto for proto in map(view.constant_proto, node.input) if proto is not None]
    return any(all(size == 1 for size in proto.dims) for proto in factors)


def check_concat_scales(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """All inputs of Concat are float, or all are dequantized with one scale; a q behind it makes them so."""
    for node in view.nodes:
        if node.op_type != "Concat" or _is_quantized(view, node.output[0]):
            continue
        makers = [view.producers.get(value) for value in node.input if not view.is_constant(value)]
        dequantizers = [maker for maker in makers if maker is not None and maker.op_type == _DQ]
        if not dequantizers:
            continue
        if len(dequantizers) < len(makers):
            yield _at(node, "has dequantized and float inputs; quantize all of them with one scale, or none")
        scales = {_scalar_scale(view, maker) for maker in dequantizers}
        if len(scales) > 1:
            listed = ", ".join(f"{scale:.6g}" for scale in sorted(s for s in scales if s is not None))
            yield _at(node, f"its inputs have different scales ({listed}); give them one")


def _is_quantized(view: OnnxView, value: str) -> bool:
    """Whether a value is read, and by q alone."""
    readers = view.consumers[value]
    return bool(readers) and value not in view.outputs and all(reader.op_type == _Q for reader in readers)


def _scalar_scale(view: OnnxView, node: NodeProto) -> float | None:
    operand = view.input(node, 1)
    scale = view.constant(operand.value) if operand else None
    return float(scale.ravel()[0]) if scale is not None and scale.size == 1 else None


def check_surplus_pair(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """No value is quantized twice with the same scale: by two q nodes side by side, or by one behind a dq."""
    seen: set[tuple[str, float]] = set()
    for node in _pairs(view):
        scale = _scalar_scale(view, node) if node.op_type == _Q else None
        if scale is None or view.is_constant(node.input[0]):
            continue
        if (node.input[0], scale) in seen:
            yield _at(node, f"quantizes {node.input[0]!r} with a scale that another q node already applies to it")
        seen.add((node.input[0], scale))
        before = view.producers.get(node.input[0])
        if before is not None and before.op_type == _DQ and _scalar_scale(view, before) == scale:
            yield _at(node, f"quantizes again what {node_name(before)} dequantized with the same scale")


def check_idle_pair(view: OnnxView, rules: LintRules) -> Iterator[Report]:
    """Every q/dq pair on an activation feeds an op that has an int8 kernel; others only cost accuracy and time."""
    for node in _pairs(view):
        if node.op_type != _DQ or view.is_constant(node.input[0]):
            continue
        readers = view.consumers[node.output[0]]
        if not any(reader.op_type in _QUANTIZABLE | {_Q} for reader in readers):
            fed = ", ".join(sorted({reader.op_type for reader in readers})) or "nothing but an output"
            yield _at(node, f"feeds {fed}, which has no int8 kernel; leave that value in float")


CHECKS: Mapping[str, Check] = {
    "structure": check_structure,
    "opset": check_opset,
    "operator": check_operator,
    "element-type": check_element_type,
    "quantized-type": check_quantized_type,
    "zero-point": check_zero_point,
    "scale": check_scale,
    "pair": check_pair,
    "weight-axis": check_weight_axis,
    "activation-granularity": check_activation_granularity,
    "float-bias": check_float_bias,
    "half-quantized": check_half_quantized,
    "residual-input": check_residual_input,
    "concat-scales": check_concat_scales,
    "surplus-pair": check_surplus_pair,
    "idle-pair": check_idle_pair,
    **LIMITS,
}
"""Every rule by name."""
