"""Which operators of a captured graph stay float32 where the rest becomes float16, each with its reason.

An operator stays where float16 would overflow, or would lose a value that matters: a result, an input or a constant
beyond the range; squares and sums inside an operator that leave it; values so small that little is left of them; and
a small number that guards a denominator, root or logarithm, which as zero would make 0/0 of a silent channel, seen in
the samples or not. Precision that float16 loses everywhere (11 bits) is no reason, but for angles: of one of a thousand
turns the 11 bits are all before the point, so what a large angle is computed of stays, up to the layer it comes from.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from deploykit.capture.calls import attribute
from deploykit.capture.finite_masks import only_reaches_softmax
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.errors import ConversionError
from deploykit_targets._float16.values import FLOAT16_MAX, LEAST_DB, SMALLEST_NORMAL, Seen, observe, widened

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.prepared import Prepared


aten = torch.ops.aten

HEADROOM = 4.0
"""Unseen data may reach this many times what was seen."""
_ABSORBED = 1e4  # what is so much smaller than what it is added to may be lost

_DENOMINATORS: Mapping[Any, int] = {
    aten.div.Tensor: 1,
    aten.div.Tensor_mode: 1,
    aten.reciprocal.default: 0,
    aten.rsqrt.default: 0,
    aten.sqrt.default: 0,
    aten.log.default: 0,
    aten.log2.default: 0,
    aten.log10.default: 0,
}
"""Op -> position of the argument that must not become zero."""

_GUARDS = frozenset(
    (
        aten.add.Tensor,
        aten.add.Scalar,
        aten.sub.Tensor,
        aten.clamp.default,
        aten.clamp.Tensor,
        aten.clamp_min.default,
        aten.clamp_min.Tensor,
        aten.maximum.default,
        aten.where.self,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
    )
)
"""Ops that put a small number under a value."""

_ANGLES = frozenset((aten.sin.default, aten.cos.default, aten.tan.default))
_LARGEST_ANGLE = 16.0  # radians: float16 has steps of 2**-6 from there on, and leaves a sine 40 dB
_FACTORS = frozenset((aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar))
_SUMS = frozenset((aten.add.Tensor, aten.sub.Tensor))
_MOVES = frozenset(
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("reshape", "default"),
        ("view", "default"),
        ("unsqueeze", "default"),
        ("squeeze", "dim"),
        ("squeeze", "dims"),
        ("expand", "default"),
        ("expand_as", "default"),
        ("permute", "default"),
        ("transpose", "int"),
        ("slice", "Tensor"),
        ("select", "int"),
        ("cat", "default"),
        ("clone", "default"),
        ("_to_copy", "default"),
    )
)
_CARRIES = _MOVES | frozenset((aten.sqrt.default, aten.maximum.default, aten.where.self, aten.abs.default))
_SQUARES = frozenset(
    "layer_norm group_norm instance_norm rms_norm _fused_rms_norm native_layer_norm native_group_norm var std var_mean"
    " std_mean norm linalg_vector_norm linalg_norm frobenius_norm cosine_similarity pairwise_distance dist".split()
)
_MEET_VALUES = frozenset(("other", "self", "min", "max", "value", "fill_value", "min_val", "max_val"))
"""Names of arguments whose numbers meet the values; others are axes, exponents, sizes."""
_MEANS = frozenset("mean adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split())


@dataclass(frozen=True)
class Float16Plan:
    """The operators that stay float32.

    Attributes:
        kept: captured node name -> why, with the value.
        beyond: those of them that overflow or vanish on the very data that was seen, or whose constants do.
    """

    kept: Mapping[str, str] = field(default_factory=dict)
    beyond: Mapping[str, str] = field(default_factory=dict)

    def listed(self, achieved: Achieved, captured: CapturedModel) -> Achieved:
        """`achieved` with the reason of every operator that was kept; those that it did not count are added."""
        if not self.kept:
            return achieved
        layers = tuple(self._reasoned(layer) for layer in achieved.layers)
        known = {layer.name for layer in layers}
        added = [
            self._added(node, captured)
            for node in captured.graph_module.graph.nodes
            if node.name in self.kept and node.name not in known and _computes(node)
        ]
        counted = Achieved.count(achieved.requested, (*layers, *added), source=achieved.source, notes=achieved.notes)
        return replace(counted, delegation=achieved.delegation)

    def refuse(self, captured: CapturedModel, why: str, hint: str) -> None:
        """Refuse what the plan keeps, for a form of model that is float16 throughout.

        Raises:
            ConversionError: something does not fit; names layer and value.
        """
        for name, reason in self.beyond.items():
            origin = captured.origins.get(name)
            raise ConversionError(f"{origin or name}: {reason}, and {why}", hint=hint)

    def _reasoned(self, layer: LayerAchieved) -> LayerAchieved:
        why = self.kept.get(layer.name)
        return replace(layer, reason=why) if why and layer.precision == "float32" else layer

    def _added(self, node: fx.Node, captured: CapturedModel) -> LayerAchieved:
        origin = captured.origins.get(node.name)
        kind = str(node.target).split(".")[1]
        return LayerAchieved(
            node.name, origin.module_path if origin else "", kind, "float32", reason=self.kept[node.name]
        )


def plan_float16(prepared: Prepared) -> Float16Plan:
    """Decide for a model, from its samples, its example inputs and (where there is one) its calibration table; once."""
    if prepared not in _PLANS:
        found = widened(_observed(prepared), prepared.extremes)
        plan = _Decision(prepared.captured, found).plan()
        chosen = {name: why or "float32 by the recipe" for name, why in prepared.in_float32.items()}
        _PLANS[prepared] = replace(plan, kept={**plan.kept, **chosen})
    return _PLANS[prepared]


def _observed(prepared: Prepared) -> dict[str, Seen]:
    """What the float model's values are; run once for all that is prepared of one capture and the same samples."""
    captured, samples = prepared.captured, prepared.samples
    known = captured.derived.get(observe)
    if known is None or known[0] is not samples:
        captured.derived[observe] = known = (samples, observe(captured, samples))
    found: dict[str, Seen] = known[1]
    return found


_PLANS: WeakKeyDictionary[Prepared, Float16Plan] = WeakKeyDictionary()


@dataclass(eq=False)
class _Decision:
    """One decision; `wide` are the nodes whose float values float16 does not hold."""

    captured: CapturedModel
    found: Mapping[str, Seen]
    wide: dict[fx.Node, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    beyond: dict[str, str] = field(default_factory=dict)

    def plan(self) -> Float16Plan:
        nodes = list(self.captured.graph_module.graph.nodes)
        for node in nodes:
            self._values(node)
        for node in nodes:
            self._guard(node)
            self._denominator(node)
            self._angle(node)
        for node in nodes:
            if node.op == "call_function":
                self._operator(node)
        return Float16Plan(self.kept, self.beyond)

    # Values.

    def _values(self, node: fx.Node) -> None:
        one = self.found.get(node.name)
        if one is None:
            return
        if _reach(node, one) > FLOAT16_MAX:
            self._widen(node, f"{_what(node)} reach {one.peak:.4g}, and float16 ends at 65504", one.peak > FLOAT16_MAX)
        elif one.kept_db < LEAST_DB and not self._is_absorbed(node, one):
            self._widen(node, f"{_what(node)} of at most {one.peak:.3g} are below what float16 holds", beyond=True)

    def _widen(self, node: fx.Node, why: str, beyond: bool = False) -> None:
        self.wide.setdefault(node, why)
        if beyond:
            name = node.name if node.op == "call_function" else next(iter(node.users), node).name
            self.beyond.setdefault(name, why)

    def _is_absorbed(self, node: fx.Node, one: Seen) -> bool:
        """Whether every reader adds the value to something so much larger that losing it does not show."""
        limit = max(one.peak, SMALLEST_NORMAL) * _ABSORBED
        sums = [user for user in node.users if user.target in _SUMS]
        readers = [user for user in node.users if user.op != "get_attr"]
        return bool(sums) and len(sums) == len(readers) and all(self._peak(user) >= limit for user in sums)

    def _peak(self, node: Any) -> float:
        return self.found[node.name].peak if isinstance(node, fx.Node) and node.name in self.found else 0.0

    # Numbers that guard a denominator.

    def _guard(self, node: fx.Node) -> None:
        if node.target not in _GUARDS:
            return
        for number in _numbers(node):
            if 0.0 < abs(number) < SMALLEST_NORMAL and (path := _path_to_denominator(node)):
                rounded = float(torch.tensor(number).half())
                why = f"{number:g} guards a denominator, and float16 has {rounded:.3g} for it"
                for step in path:
                    self._widen(step, why)
                if not rounded:
                    self.beyond.setdefault(node.name, why)

    def _denominator(self, node: fx.Node) -> None:
        position = _DENOMINATORS.get(node.target)
        source = node.args[position] if position is not None and len(node.args) > position else None
        if not isinstance(source, fx.Node) or source.name not in self.found:
            return
        smallest = self.found[source.name].smallest
        if smallest < SMALLEST_NORMAL:
            self._widen(source, f"a denominator, root or logarithm of {smallest:.3g} is below float16's 6.1e-05")

    # Angles.

    def _angle(self, node: fx.Node) -> None:
        source = node.args[0] if node.target in _ANGLES else None
        if not isinstance(source, fx.Node) or (peak := self._peak(source)) <= _LARGEST_ANGLE:
            return
        step = 2.0 ** (math.floor(math.log2(peak)) - 10)
        why = f"angles reach {peak:.4g} radians, where float16 has steps of {step:.3g}"
        pending = [source]
        while pending:
            angle = pending.pop()
            if angle in self.wide or not _is_float(angle):
                continue
            self._widen(angle, why)
            if angle.target in _FACTORS | _SUMS | _MOVES:
                pending += angle.all_input_nodes

    # Operators.

    def _operator(self, node: fx.Node) -> None:
        if node.target is operator.getitem:  # one of several results has the type of them all
            source = node.args[0]
            if isinstance(source, fx.Node) and source.name in self.kept:
                self.kept[node.name] = self.kept[source.name]
            return
        if not _is_float(node) and not any(_is_float(source) for source in node.all_input_nodes):
            return
        why = self.wide.get(node) or self._from_inputs(node) or self._from_numbers(node) or self._from_inside(node)
        if why:
            self.kept[node.name] = why

    def _from_inputs(self, node: fx.Node) -> str:
        return next((self.wide[source] for source in node.all_input_nodes if source in self.wide), "")

    def _from_numbers(self, node: fx.Node) -> str:
        if not _is_float(node):
            return ""
        for number in _numbers(node):
            if abs(number) > FLOAT16_MAX and abs(number) != float("inf"):
                why = f"the constant {number:g} is beyond float16's 65504"
            elif node.target in _FACTORS and 0.0 < abs(number) < SMALLEST_NORMAL:
                why = f"the factor {number:g} is below float16's 6.1e-05"
            else:
                continue
            self.beyond.setdefault(node.name, why)
            return why
        return ""

    def _from_inside(self, node: fx.Node) -> str:
        """Squares and sums that an operator makes inside."""
        kind = str(node.target).split(".")[1] if "." in str(node.target) else ""
        sources = node.all_input_nodes
        if kind in _SQUARES and sources:
            inside, what = self._peak(sources[0]) ** 2, "squares"
        elif kind in _MEANS and sources:
            inside, what = self._peak(node) * _ratio(sources[0], node), "sums"
        else:
            return ""
        if inside <= FLOAT16_MAX:
            return ""
        return f"{what} inside reach {inside:.4g}, and float16 ends at 65504"


def _reach(node: fx.Node, one: Seen) -> float:
    """How far unseen data may go; constants are what they are, and what a mask fills in is far enough as it is."""
    if node.op == "get_attr":
        return one.peak
    return max(one.highest * HEADROOM, -one.lowest * (1.0 if only_reaches_softmax(node) else HEADROOM))


def _what(node: fx.Node) -> str:
    return {"placeholder": "inputs", "get_attr": f"values of {node.target}"}.get(node.op, "values")


def _ratio(source: fx.Node, node: fx.Node) -> float:
    """How many elements of its input one of a reduction's results is made of, in the captured sizes."""
    sizes = [value.meta["val"].numel() for value in (source, node)]
    return float(sizes[0]) / max(float(sizes[1]), 1.0)


def _numbers(node: fx.Node) -> Iterator[float]:
    """Python numbers among the arguments that meet the values, and the elements of small constants."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if isinstance(value, fx.Node) and value.op == "get_attr" and _is_small_float(attribute(value)):
            yield from attribute(value).reshape(-1).tolist()
        elif argument.name in _MEET_VALUES and isinstance(value, float | int) and not isinstance(value, bool):
            yield float(value)


def _is_small_float(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() <= 16


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if node.op == "get_attr":
        value = attribute(node)
    return any(isinstance(leaf, Tensor) and leaf.dtype is torch.float32 for leaf in pytree.tree_leaves(value))


def _computes(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target not in _MOVES and "." in str(node.target)


def _path_to_denominator(node: fx.Node) -> list[fx.Node]:
    """The values from a small number to the denominators that it guards; empty where it guards none."""
    path: list[fx.Node] = []
    for user in node.users:
        position = _DENOMINATORS.get(user.target)
        read = user.args[position] if position is not None and len(user.args) > position else None
        if read is node or _is_root_of(user, node):
            path.append(node)
        if user.target in _CARRIES and (further := _path_to_denominator(user)):
            path += [node, *further]
    return list(dict.fromkeys(path))


def _is_root_of(user: fx.Node, base: fx.Node) -> bool:
    if user.target is not aten.pow.Tensor_Scalar or user.args[0] is not base:
        return False
    exponent = user.args[1]
    return isinstance(exponent, float | int) and (exponent < 0 or exponent != int(exponent))
