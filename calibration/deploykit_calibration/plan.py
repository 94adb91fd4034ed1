"""Decide which ops compute in integers and which tensors are rounded: the rules of a scheme, run to a fixed point.

Nothing is written here. Sets only grow, so the order of visits does not matter: an op that asks for integers makes
its inputs *demanded*; an op that writes integers makes its output *hard* (its float value is gone); ops that follow
or join become integer ops when a neighbour is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import Node

from deploykit.capture.fourier import TRANSFORM
from deploykit.capture.recurrent import MOST_STEPS
from deploykit.contract.errors import UsageError
from deploykit.contract.formats import PerGroup, TensorScheme, placed_as
from deploykit.contract.scheme import AT_RUN_TIME, Inputs, OpRule, Output, Scheme
from deploykit_calibration.graph_view import GraphView, is_constant, is_float
from deploykit_calibration.op_kinds import (
    LAYERS,
    MACS,
    argument,
    bias_argument,
    data_arguments,
    input_channel_axis,
    shape_of,
    weight_argument,
)
from deploykit_calibration.products import layer_kind, weight_count
from deploykit_calibration.statistics import TensorStatistics
from deploykit_calibration.transformer_residual import ResidualStream, residual_stream

GRAPH_OUTPUT = "graph output"  # the reason why an op that must write integers stays float
_WEIGHT_ALONE = (Inputs.RUN_TIME, Inputs.WEIGHT)
_TWO_OPERANDS = frozenset({"add", "sub", "mul"})


@dataclass(frozen=True)
class Stored:
    """A layer whose weight alone is rounded at export.

    Attributes:
        weight: form of the weight.
        rounded: what its kernel rounds its inputs to when it runs; None where it does not.
        counted: the name that it is counted under.
    """

    weight: TensorScheme
    rounded: TensorScheme | None
    counted: str


@dataclass
class PlacementPlan:
    """What will be rounded.

    Attributes:
        reads: tensors that each integer op reads as integers.
        demanded: tensors that some op reads as integers.
        hard: tensors whose float value is gone: every consumer reads the rounded one.
        stored: ops whose weight alone is rounded; they read and write float.
        reasons: why an op stays float, by node.
    """

    reads: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    demanded: set[Node] = field(default_factory=set)
    hard: set[Node] = field(default_factory=set)
    stored: dict[Node, Stored] = field(default_factory=dict)
    reasons: dict[Node, str] = field(default_factory=dict)

    @property
    def quantized(self) -> set[Node]:
        """All tensors that get a q/dq pair."""
        return self.demanded | self.hard


class Planner:
    """Applies one scheme to one graph."""

    def __init__(
        self,
        view: GraphView,
        scheme: Scheme,
        observed: Mapping[str, TensorStatistics],
        kept: Mapping[str, str],
        wider: Mapping[str, str] | None = None,
    ) -> None:
        self._view, self.scheme, self._observed, self._kept = view, scheme, observed, kept
        self._wider = wider or {}
        self._stream = residual_stream(view) if scheme.residual_policy == "auto" else ResidualStream()
        self._unrounded = self._stream.tensors | self._stream.starts
        self._returned = view.returned - self._rounded_outputs() if scheme.float_outputs else frozenset()
        self._heads = self._small_heads() if scheme.float_head else frozenset()
        self._plan = PlacementPlan()
        self._possible: list[Node] = []

    def run(self) -> PlacementPlan:
        """Decide everything.

        Raises:
            UsageError: the weight of a layer shall be wider, and the scheme has no form for that.
        """
        for op in self._view.ops():
            rule = self._rule(op)
            reason = self._why_float(op, rule)
            if reason == GRAPH_OUTPUT and self._view.kinds[op] in self.scheme.run_time_outputs:
                self._plan.stored[op] = self._stored(op, AT_RUN_TIME)
            elif reason is not None:
                self._plan.reasons[op] = reason
            elif rule.inputs in _WEIGHT_ALONE:
                self._plan.stored[op] = self._stored(op, rule)
                self._plan.reasons[op] = self._why_wider(op, rule)
            else:
                self._possible.append(op)
        while self._round():
            pass
        for op in self._possible:
            if op not in self._plan.reads:
                self._plan.reasons[op] = "no neighbour computes in integers"
        self._check_wider()
        return self._plan

    def _check_wider(self) -> None:
        """Every layer whose weight shall be wider has a form for that."""
        able = {op.name for op in self._plan.stored if self._rule(op).wider is not None}
        unable = [name for name in self._wider if name not in able]
        if unable:
            raise UsageError(
                f"{self.scheme.name} has no 8-bit form for the weights of {', '.join(unable[:5])} beside narrower ones",
                hint="keep these layers in float, or take onnxruntime, whose matrix products may differ in width",
            )

    def _rule(self, op: Node) -> OpRule:
        return self.scheme.rule(self._view.kinds[op])

    def tail(self, op: Node) -> Node:
        """Where the output of an op is rounded: behind the activation that is fused to it."""
        return self._view.tail(op, self.scheme.fused_activations)

    def results(self, op: Node) -> tuple[Node, ...]:
        """The tensors that are rounded when the op writes integers."""
        tail = self.tail(op)
        return (tail,) if tail is not op else self._view.results(op)

    def _rounded_outputs(self) -> set[Node]:
        """Results of layers too large to stay float for the sake of what the graph returns, see `output_share`."""
        macs = {op: self._view.macs(op) or 0 for op in self._view.ops() if self._view.kinds[op] in MACS}
        most = self.scheme.output_share * sum(macs.values())
        large = (op for op, count in macs.items() if count > most and self._rule(op).output is Output.REQUIRED)
        return {result for op in large for result in self.results(op)}

    def _small_heads(self) -> frozenset[Node]:
        """Linear layers whose result is returned and that are a small share of what may be quantized."""
        ops = [op for op in self._view.ops() if self._view.kinds[op] in MACS and op.name not in self._kept]
        macs = {op: self._view.macs(op) or 0 for op in ops}
        least = self.scheme.float_head * sum(macs.values())
        linear = (op for op in ops if self._view.kinds[op] == "linear" and macs[op] < least)
        return frozenset(op for op in linear if not self._view.returned.isdisjoint(self._view.results(op)))

    # Why an op cannot be an integer op, whatever its neighbours do.

    def _why_float(self, op: Node, rule: OpRule) -> str | None:
        if op.name in self._kept:
            return self._kept[op.name]
        if transform_of(op):
            return f"part of {transform_of(op)}: 8 bits hold no spectrum"
        if rule.inputs is Inputs.FLOAT:
            return rule.reason or f"{self.scheme.name} keeps {layer_kind(op)} in float"
        if rule.inputs in _WEIGHT_ALONE:
            return self._why_stored(op, rule) or self._why_weight(op)
        return (
            self._why_rank(op)
            or self._why_operands(op)
            or self._why_weight(op)
            or self._why_residual(op, rule)
            or self._why_output(op, rule)
        )

    def _why_stored(self, op: Node, rule: OpRule) -> str | None:
        stored = self._view.stored_operands(op)
        if not stored:
            return None if weight_argument(op) is not None else "a product of two activations has no weights"
        if rule.matrices and any(len(shape_of(node)) != 2 for node, _ in stored):
            return "its weights are a stack of matrices"
        if not rule.depthwise and _is_depthwise(op):
            return rule.reason or f"{self.scheme.name} keeps depthwise convolutions in float"
        if max(math.prod(shape_of(node)) for node, _ in stored) < self.scheme.min_weights:
            return f"fewer than {self.scheme.min_weights} weights"
        return None

    def _stored(self, op: Node, rule: OpRule) -> Stored:
        """How the weight of an op is stored: the first form that it fits into, else the last."""
        forms = rule.weight or (self.scheme.weight,)
        if op.name in self._wider and rule.wider is not None:
            forms = (rule.wider,)
        operands = self._view.stored_operands(op)
        fitting = (form for form in forms if all(_fits(form, node, axis) for node, axis in operands))
        weight = next(fitting, forms[-1])
        named = rule.rounded if rule.inputs is Inputs.RUN_TIME else None
        return Stored(weight, rule.rounded, placed_as(weight, named))

    def _why_wider(self, op: Node, rule: OpRule) -> str:
        """Why a stored weight is not in the scheme's own form; "" where it is as narrow."""
        form = self._plan.stored[op].weight
        if op.name in self._wider:
            return self._wider[op.name]
        if form.bits <= self.scheme.weight.bits:
            return ""
        sizes = [own.granularity.size for own in rule.weight if isinstance(own.granularity, PerGroup)]
        if not sizes:
            return rule.reason
        inputs = [shape_of(node)[1 - axis] for node, axis in self._view.stored_operands(op) if axis is not None]
        return f"its {inputs[0]} inputs are no multiple of a block of {sizes[0]}: it holds {form.bits} bits"

    def _why_operands(self, op: Node) -> str | None:
        operands = self._view.operands(op)
        constants_allowed = self._view.kinds[op] == "matmul"
        for tensor in operands:
            if tensor in self._view.activations and is_float(tensor):
                if not self.has_statistics(tensor):
                    return self._why_no_range("input", tensor)
            elif not (constants_allowed and is_constant(tensor) and is_float(tensor)):
                return "an operand is a constant, a mask, or computed from integers"
        if not any(tensor in self._view.activations for tensor in operands):
            return "an operand is a constant, a mask, or computed from integers"
        if self._view.kinds[op] in _TWO_OPERANDS and len(operands) < 2:
            return "scalar arithmetic"
        return None

    def _why_rank(self, op: Node) -> str | None:
        most = self.scheme.max_rank
        if most and any(len(shape_of(tensor)) > most for tensor in (*self._view.operands(op), *self.results(op))):
            return f"a tensor of more than {most} axes"
        return None

    def _why_weight(self, op: Node) -> str | None:
        weight, bias = weight_argument(op), bias_argument(op)
        if weight is not None and not (is_constant(weight) and is_float(weight)):
            return "its weight is computed at run time"
        if self._view.kinds[op] == "linear" and min(shape_of(weight)) < self.scheme.min_linear:
            return f"fewer than {self.scheme.min_linear} inputs or outputs: no faster in int8"
        if op in self._heads:
            return f"returned, and less than {self.scheme.float_head:.0%} of the multiply-accumulates: exact in float"
        if bias is not None and self.scheme.bias == "int32" and not is_constant(bias):
            return "its bias is computed at run time"
        return None

    def _why_residual(self, op: Node, rule: OpRule) -> str | None:
        kind = self._view.kinds[op]
        if kind in _TWO_OPERANDS and argument(op, 2, "alpha", 1) != 1:
            return "scales one operand"
        if kind == "add" and self.scheme.residual_policy == "float":
            return "residual additions stay in float in this scheme"
        if kind not in MACS and any(result in self._stream.tensors for result in self.results(op)):
            return "transformer residual stream"
        return None

    def _why_output(self, op: Node, rule: OpRule) -> str | None:
        if rule.output is not Output.REQUIRED:
            return None
        for tensor in self.results(op):
            if tensor in self._returned:
                return GRAPH_OUTPUT
            if tensor in self._stream.starts:
                return "starts the transformer residual stream"
            if not self.has_statistics(tensor):
                return self._why_no_range("output", tensor)
        return None if self.results(op) else "computes no float tensor"

    def has_statistics(self, tensor: Node) -> bool:
        """Whether a range is known: its own, a built-in one, a bound, or that of what it was moved from."""
        known = self.scheme.fixed_outputs.keys() | self.scheme.bounded_outputs.keys()
        return any(
            self._has_range(source.name) or self._view.kinds[source] in known for source in self._view.same_data(tensor)
        )

    def _has_range(self, name: str) -> bool:
        """Whether all values of a tensor were seen to lie in a range: a mask that was added leaves none."""
        return name in self._observed and not self._observed[name].nonfinite

    def _why_no_range(self, what: str, tensor: Node) -> str:
        if tensor.name in self._observed:
            return f"its {what} {tensor.name} holds infinities"
        return (
            f"no calibration statistics for its {what} {tensor.name}: a finished table has of the steps that a target"
            f" writes recurrent layers out in what products read (none of more than {MOST_STEPS} steps, or where an"
            " older deploykit made it), and calibration=data has all"
        )

    # The fixed point.

    def _round(self) -> bool:
        before = (len(self._plan.reads), len(self._plan.demanded), len(self._plan.hard))
        for op in self._possible:
            if op not in self._plan.reads and self._is_integer(op, self._rule(op)):
                self._accept(op, self._rule(op))
        return before != (len(self._plan.reads), len(self._plan.demanded), len(self._plan.hard))

    def _is_integer(self, op: Node, rule: OpRule) -> bool:
        operands = [tensor for tensor in self._view.operands(op) if tensor in self._view.activations]
        if rule.inputs is Inputs.INT8:
            return True
        if rule.inputs is Inputs.RESIDUAL:
            fused = self._fused_layer(op)
            if fused is None or self._view.kinds[fused] == "conv":
                return fused is not None
            # The chain behind a product of matrices reads the skip connection as it is; rounding it is one write more.
            return all(tensor is fused or tensor in self._plan.quantized for tensor in operands)
        wanted = rule.pull and any(result in self._plan.demanded for result in self.results(op))
        if rule.inputs is Inputs.FOLLOW:
            shares = wanted or (rule.pull and rule.output is Output.ON_DEMAND)
            have = self._plan.quantized if shares else self._plan.hard
            return all(tensor in have for tensor in operands)
        return wanted or any(tensor in self._plan.hard for tensor in operands)

    def _accept(self, op: Node, rule: OpRule) -> None:
        operands = tuple(tensor for tensor in self._view.operands(op) if tensor in self._view.activations)
        fused = self._fused_layer(op) if rule.inputs is Inputs.RESIDUAL else None
        reads = [tensor for tensor in operands if tensor is not fused]
        self._plan.reads[op] = tuple(dict.fromkeys(reads))
        self._plan.demanded.update(reads)
        if rule.output is Output.ON_DEMAND:
            return
        for tensor in self.results(op):
            if tensor not in self._unrounded | self._returned and self.has_statistics(tensor):
                self._plan.hard.add(tensor)

    def _fused_layer(self, op: Node) -> Node | None:
        """The integer layer that an addition is fused to: the last operand that is one and that nothing else reads."""
        layers = [
            tensor
            for tensor in self._view.operands(op)
            if self._view.kinds[tensor] in MACS and len(tensor.users) == 1 and tensor in self._plan.reads
        ]
        return max(layers, key=self._view.order.__getitem__, default=None)


def _fits(form: TensorScheme, weight: Node, axis: int | None) -> bool:
    """Whether groups of a form divide the axis of a weight that is summed over."""
    size = form.granularity.size if isinstance(form.granularity, PerGroup) else 0
    return not size or (axis is not None and shape_of(weight)[1 - axis] % size == 0)


def _is_depthwise(op: Node) -> bool:
    """Whether a convolution has one input channel for each output, and several of them."""
    outputs, inputs = shape_of(weight_argument(op))[:2]
    return inputs == 1 < outputs and shape_of(data_arguments(op)[0])[input_channel_axis(op)] > 1


def transform_of(op: Node) -> str:
    """The Fourier transform that a product is a part of; "" for any other operator.

    Its results span more than 8 bits, and no precision of layers is about it.
    """
    return str(op.meta.get(TRANSFORM, ""))


def is_layer(view: GraphView, op: Node) -> bool:
    """Whether a placement reports an op by itself: what multiplies, has weights, or joins tensors."""
    kind = view.kinds[op]
    if kind in _TWO_OPERANDS:
        both = len(view.operands(op)) == 2 and all(tensor in view.activations for tensor in view.operands(op))
        return both or view.macs(op) != 0
    return kind in LAYERS or view.macs(op) != 0 or weight_count(op) > 0
