"""Quantize once: write the q/dq nodes of a scheme into a copy of the captured graph.

The result is the source of every lowering; `simulate.fuse` makes of it what runs in PyTorch, the simulated
reference. This module refuses to touch integers, masks, scalar arithmetic, graph outputs and the residual stream of
transformers, and says of every layer that stays float why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from torch.fx import GraphModule, Node

from deploykit.contract.achieved import FloatActivation
from deploykit.contract.formats import TensorScheme, placed_as
from deploykit.contract.scheme import FixedParams, Scheme
from deploykit_calibration.float_between import float_activations
from deploykit_calibration.graph_view import GraphView, is_float
from deploykit_calibration.patterns import kept_float
from deploykit_calibration.plan import PlacementPlan, Planner, is_layer, transform_of
from deploykit_calibration.products import layer_kind, weight_count
from deploykit_calibration.ranges import affine_qparams
from deploykit_calibration.rewrite import Rewriter, TensorParams
from deploykit_calibration.same_scale import Groups, union_range

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.table import CalibrationTable

_NOT_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softmax"})


@dataclass(frozen=True)
class LayerPlacement:
    """What one layer computes in.

    Attributes:
        name: node name in the captured graph.
        module_path: dotted path of the module, "" for the root.
        kind: such as `conv`, `linear`, `add`.
        macs: multiply-accumulates at the captured input sizes; 0 where `counted` says that they are not known.
        weights: weight elements.
        precision: what it is placed as, under the name that it is counted by (`int8`, `int4-weights`), or `float`.
        reason: why it is float; "" where it is not.
        by_request: it is float because include or exclude says so, or is a Fourier transform, which is no layer.
        counted: whether it is known how often the operator multiplies.
    """

    name: str
    module_path: str
    kind: str
    macs: int
    weights: int
    precision: str
    reason: str
    by_request: bool = False
    counted: bool = True


@dataclass(frozen=True, eq=False)
class QuantizedGraph:
    """A captured graph with q/dq nodes.

    Attributes:
        graph_module: the copy; original nodes keep their names.
        layers: every layer in execution order.
        scheme: the scheme that was placed.
        integer_outputs: tensor -> op that writes it as integers, by node name. The tensor is the op itself, or the
            activation that is fused to it; all its consumers read the rounded value. Tensors with a q/dq pair that
            are not here are rounded only for the ops that ask for it.
        float_activations: what computes in float beside the integer layers, largest first.
        run_time: what layers round their input to when they run, by name: they write float. In the graph their weight
            is rounded, and their input is not.
        forms: the forms of the weights of layers whose weight alone is rounded, by name.
    """

    graph_module: GraphModule
    layers: tuple[LayerPlacement, ...]
    scheme: Scheme
    integer_outputs: Mapping[str, str]
    float_activations: tuple[FloatActivation, ...] = ()
    run_time: Mapping[str, TensorScheme] = field(default_factory=dict)
    forms: Mapping[str, TensorScheme] = field(default_factory=dict)


def place(
    captured: CapturedModel,
    table: CalibrationTable | None,
    scheme: Scheme,
    *,
    method: str = "default",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kept: Mapping[str, str] | None = None,
    wider: Mapping[str, str] | None = None,
    methods: Mapping[str, str] | None = None,
) -> QuantizedGraph:
    """Place q/dq nodes as a scheme says.

    Args:
        captured: the model; it is not changed.
        table: its calibration; layers whose tensors have no statistics stay float. None for schemes that need none.
        method: calibration method, see `ranges.METHODS`.
        include: patterns of module paths; where given, only these layers are quantized.
        exclude: patterns of module paths that stay float.
        kept: layers that stay float, by node name, and why.
        wider: layers whose weight is held in 8 bits where the scheme has fewer, by node name, and why.
        methods: calibration method of single tensors, by the node that computes them.
    Returns:
        The q/dq graph with a report of every layer.
    Raises:
        UsageError: unknown method, a pattern that matches no layer, or a weight that cannot be wider.
        CalibrationError: a range or a weight is not finite.
    """
    view = GraphView.of(captured)
    asked = asked_float(captured, view, include, exclude)
    planner, plan = plan_graph(view, scheme, table, {**(kept or {}), **asked}, wider)
    params = _params(view, plan, planner, _Ranges(view, table, scheme, method, methods or {})) if table else {}
    graph_module = Rewriter(captured.graph_module, view, scheme, table.layer_inputs if table else {}).run(plan, params)
    return QuantizedGraph(
        graph_module,
        describe_layers(captured, view, plan, scheme, asked),
        scheme,
        integer_outputs={
            tensor.name: op.name for op in plan.reads for tensor in planner.results(op) if tensor in plan.hard
        },
        float_activations=float_activations(captured, view, planner, plan),
        run_time={op.name: stored.rounded for op, stored in plan.stored.items() if stored.rounded},
        forms={op.name: stored.weight for op, stored in plan.stored.items()},
    )


def plan_layers(
    captured: CapturedModel,
    table: CalibrationTable | None,
    scheme: Scheme,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kept: Mapping[str, str] | None = None,
    wider: Mapping[str, str] | None = None,
) -> tuple[LayerPlacement, ...]:
    """What `place` would make of every layer: the plan alone, without ranges and without a graph."""
    view = GraphView.of(captured)
    asked = asked_float(captured, view, include, exclude)
    plan = plan_graph(view, scheme, table, {**(kept or {}), **asked}, wider)[1]
    return describe_layers(captured, view, plan, scheme, asked)


def plan_graph(
    view: GraphView,
    scheme: Scheme,
    table: CalibrationTable | None,
    floats: Mapping[str, str],
    wider: Mapping[str, str] | None = None,
) -> tuple[Planner, PlacementPlan]:
    """What a scheme makes of a graph; ranges are not looked at, only which tensors have any.

    Args:
        floats: layers that stay float, by node name, and why.
        wider: layers whose weight is held in 8 bits where the scheme has fewer, by node name, and why.
    """
    planner = Planner(view, scheme, table.statistics if table else {}, floats, wider)
    return planner, planner.run()


def float_graph(
    captured: CapturedModel, scheme: Scheme, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> QuantizedGraph:
    """The float graph as a placement in which nothing is placed: every layer with its multiply-accumulates."""
    view = GraphView.of(captured)
    kept = asked_float(captured, view, include, exclude)
    plan = PlacementPlan(reasons={op: kept[op.name] for op in view.ops() if op.name in kept})
    return QuantizedGraph(captured.graph_module, describe_layers(captured, view, plan, scheme, kept), scheme, {})


def asked_float(
    captured: CapturedModel, view: GraphView, include: Sequence[str], exclude: Sequence[str]
) -> dict[str, str]:
    """Layers that stay float by the user's wish, with the reason.

    Raises:
        UsageError: a pattern matches no layer.
    """
    if not include and not exclude:
        return {}
    names = [op.name for op in view.ops() if is_layer(view, op)]
    return kept_float(captured.origins, names, include, exclude)


class _Ranges:
    """Ranges of tensors, from the table or built in."""

    def __init__(
        self, view: GraphView, table: CalibrationTable, scheme: Scheme, method: str, methods: Mapping[str, str]
    ) -> None:
        self._view, self._table, self._scheme = view, table, scheme
        self._method, self._methods = method, methods

    def fixed(self, tensor: Node) -> FixedParams | None:
        """Built-in parameters of the kernel that computes the tensor's data."""
        found = (self._scheme.fixed_outputs.get(self._view.kinds[node]) for node in self._view.same_data(tensor))
        return next((params for params in found if params is not None), None)

    def observed(self, tensor: Node, *, symmetric: bool) -> tuple[float, float]:
        """The range of a tensor for symmetric or affine parameters; of what it was moved from where it has none."""
        fixed = self.fixed(tensor)
        if fixed is not None:
            return self.covered(fixed)
        bound = self._bound(tensor)
        if bound is not None and not self._seen(tensor):
            return (-bound if symmetric else 0.0), bound
        source = next(node for node in self._view.same_data(tensor) if node.name in self._table.statistics)
        method, bits = self._method if bound is None else "minmax", self._scheme.activation.bits
        method = self._methods.get(source.name, method)
        lo, hi = self._table.range(
            source.name, method=method, symmetric=symmetric, bits=bits, degree=self._view.degrees[source.name]
        )
        kind = self._view.kinds[source]
        if kind in _NOT_NEGATIVE and not symmetric:
            lo = 0.0
        return (lo, min(hi, 6.0)) if kind == "relu6" else (lo, hi)

    def _bound(self, tensor: Node) -> float | None:
        """What the values of a tensor never pass, where that is known of the operator that computes them."""
        found = (self._scheme.bounded_outputs.get(self._view.kinds[node]) for node in self._view.same_data(tensor))
        return next((bound for bound in found if bound is not None), None)

    def _seen(self, tensor: Node) -> bool:
        """Whether calibration saw the tensor, and nothing but numbers in it."""
        found = (self._table.statistics.get(node.name) for node in self._view.same_data(tensor))
        statistics = next((each for each in found if each is not None), None)
        return statistics is not None and not statistics.nonfinite

    def covered(self, params: FixedParams) -> tuple[float, float]:
        """The range that built-in parameters cover."""
        activation = self._scheme.activation
        lo = (activation.quant_min - params.zero_point) * params.scale
        return lo, (activation.quant_max - params.zero_point) * params.scale


def _params(view: GraphView, plan: PlacementPlan, planner: Planner, ranges: _Ranges) -> dict[Node, TensorParams]:
    """Scale and zero-point of every tensor that is rounded; one for each same-scale group."""
    groups = Groups[Node]()
    scheme = planner.scheme
    for tensor in sorted(plan.quantized, key=view.order.__getitem__):
        groups.find(tensor)
    for op, reads in plan.reads.items():
        results = [result for result in planner.results(op) if result in plan.quantized]
        if view.kinds[op] in scheme.same_scale and results:
            groups.join([*reads, *results])
    for op in (op for op in view.ops() if {view.kinds[op], str(op.target)} & scheme.always_same_scale):
        operands = [tensor for tensor in op.all_input_nodes if tensor in view.activations and is_float(tensor)]
        if operands and all(tensor in plan.hard or tensor in plan.reads.get(op, ()) for tensor in operands):
            groups.join([*operands, *(result for result in planner.results(op) if result in plan.quantized)])
    centred = _centred(view, plan, scheme)
    found = {}
    for group in groups:
        params = _group_params(group, ranges, scheme, centred=not centred.isdisjoint(group))
        found.update(dict.fromkeys(group, params))
    return found


def _centred(view: GraphView, plan: PlacementPlan, scheme: Scheme) -> set[Node]:
    """Tensors whose zero-point is in the middle, because of what reads them."""
    pairs = (view.operands(op) for op in plan.reads if view.kinds[op] in scheme.symmetric_second)
    return {operands[1] for operands in pairs}


def _group_params(group: tuple[Node, ...], ranges: _Ranges, scheme: Scheme, *, centred: bool = False) -> TensorParams:
    symmetric = centred or scheme.activation.symmetric
    lo, hi = union_range([ranges.observed(tensor, symmetric=symmetric) for tensor in group])
    fixed = next((params for params in map(ranges.fixed, group) if params is not None), None)
    if fixed is not None and not centred:
        # Built-in parameters hold for the group unless another member does not fit into them.
        covered = ranges.covered(fixed)
        if covered[0] <= lo and hi <= covered[1]:
            kind = np.float16 if scheme.float16_scales else np.float32
            return TensorParams(float(kind(fixed.scale)), fixed.zero_point)
    activation = scheme.activation
    limits = {"quant_min": activation.quant_min, "quant_max": activation.quant_max}
    half = scheme.float16_scales
    params = affine_qparams(lo, hi, symmetric=symmetric, what=group[0].name, float16=half, **limits)
    return TensorParams(float(params.scale), int(params.zero_point))


def describe_layers(
    captured: CapturedModel, view: GraphView, plan: PlacementPlan, scheme: Scheme, kept: Collection[str] = ()
) -> tuple[LayerPlacement, ...]:
    """Every layer in execution order, and what `plan` makes of it; `kept` are float by the user's wish."""
    return tuple(
        replace(
            layer,
            precision=_placed_as(op, plan, scheme),
            reason=plan.reasons.get(op, ""),
            by_request=op.name in kept or bool(transform_of(op)),
        )
        for op, layer in _in_float(captured, view)
    )


def _in_float(captured: CapturedModel, view: GraphView) -> tuple[tuple[Node, LayerPlacement], ...]:
    """Every layer as it is before any plan; counted once, as a search describes them hundreds of times."""
    if _in_float not in captured.derived:
        ops = (op for op in view.ops() if is_layer(view, op))
        captured.derived[_in_float] = tuple((op, _counted(captured, view, op)) for op in ops)
    found: tuple[tuple[Node, LayerPlacement], ...] = captured.derived[_in_float]
    return found


def _counted(captured: CapturedModel, view: GraphView, op: Node) -> LayerPlacement:
    macs = view.macs(op)
    return LayerPlacement(
        name=op.name,
        module_path=captured.origins[op.name].module_path if op.name in captured.origins else "",
        kind=layer_kind(op),
        macs=macs or 0,
        weights=0 if transform_of(op) else weight_count(op),  # the numbers of a transform are no weights
        precision="float",
        reason="",
        counted=macs is not None,
    )


def _placed_as(op: Node, plan: PlacementPlan, scheme: Scheme) -> str:
    if op in plan.stored:
        return plan.stored[op].counted
    return placed_as(scheme.weight, scheme.activation) if op in plan.reads else "float"
