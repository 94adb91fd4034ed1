"""Which roundings are left when some layers stay float: the rules of the scheme, run again, without a graph.

A layer that is made float keeps its output rounded where a neighbour asks for integers, and its neighbours may lose
theirs: only the planner knows, and it takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.op_kinds import data_arguments
from deploykit_calibration.placement import LayerPlacement, asked_float, describe_layers, plan_graph
from deploykit_calibration.plan import PlacementPlan

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit_calibration.prepared import Prepared
    from deploykit_calibration.sensitivity.taps import Read

KEPT = "kept in float: the noise of its rounding is worth more than its time"
WIDENED = "holds 8 bits: the noise of fewer is worth more than their bytes"

_SELECT = frozenset(
    {"reshape", "split", "concat", "max_pool", "resize_nearest"}
)  # their results are among their inputs


@dataclass(frozen=True)
class Planned:
    """What a scheme makes of a graph in which some layers stay float.

    Attributes:
        reads: the readers of each tensor that read it rounded, by name.
        repeated: tensors of these that are on their grid without it: what is moved or selected from rounded tensors
            of the same scale.
        stored: layers whose stored operands are rounded.
        widened: those of these that hold 8 bits where the scheme has fewer.
        layers: every layer, and what it is placed as.
        written: the tensors that a layer writes as integers, by its name.
    """

    reads: Mapping[str, tuple[str, ...]]
    repeated: frozenset[str]
    stored: tuple[str, ...]
    widened: tuple[str, ...]
    layers: tuple[LayerPlacement, ...]
    written: Mapping[str, tuple[str, ...]]

    @cached_property
    def counted(self) -> Mapping[str, tuple[str, ...]]:
        """The roundings that add an error."""
        return {tensor: readers for tensor, readers in self.reads.items() if tensor not in self.repeated}

    @cached_property
    def pairs(self) -> frozenset[Read]:
        """Every tensor whose rounding adds an error, with each of its readers."""
        return frozenset((tensor, reader) for tensor, readers in self.counted.items() for reader in readers)

    @property
    def hangs(self) -> Iterator[tuple[str, ...]]:
        """For each rounded tensor, what reads it, and what writes it as integers."""
        writers = {tensor: op for op, tensors in self.written.items() for tensor in tensors}
        for tensor, readers in self.reads.items():
            yield (writers[tensor], *readers) if tensor in writers else readers

    @property
    def quantized(self) -> tuple[LayerPlacement, ...]:
        """The layers that are not float."""
        return tuple(layer for layer in self.layers if layer.precision != "float")


class Planning:
    """Plans one prepared model with some of its layers kept apart.

    Args:
        prepared: what is kept apart in it already stays so.
        widens: a layer that is kept holds 8 bits where the scheme has fewer; else it is float.
    """

    def __init__(self, prepared: Prepared, *, widens: bool = False) -> None:
        self._widens = widens
        self._captured, self._view = prepared.captured, GraphView.of(prepared.captured)
        self._scheme = replace(prepared.scheme, bias_correction=prepared.corrects_bias)
        self._table = prepared.table
        self._asked = asked_float(self._captured, self._view, prepared.include, prepared.exclude)
        self._before, self._wide = dict(prepared.kept), dict(prepared.wider)

    def candidates(self, planned: Planned) -> tuple[LayerPlacement, ...]:
        """The layers that can be kept."""
        if not self._widens:
            return planned.quantized
        able = {op.name for op in self._view.ops() if self._scheme.rule(self._view.kinds[op]).wider is not None}
        known = able.intersection(planned.stored) - set(planned.widened)
        return tuple(layer for layer in planned.quantized if layer.name in known)

    def plan(self, kept: Collection[str] = ()) -> Planned:
        """The plan with these layers kept beside those that were so already.

        Args:
            kept: names of nodes.
        """
        new = dict.fromkeys(kept, WIDENED if self._widens else KEPT)
        floats, wider = (self._before, {**new, **self._wide}) if self._widens else ({**new, **self._before}, self._wide)
        planner, plan = plan_graph(self._view, self._scheme, self._table, {**floats, **self._asked}, wider)
        reads = {tensor.name: _readers(plan, tensor) for tensor in plan.quantized}
        for op in (op for op, own in plan.stored.items() if own.rounded is not None):
            for tensor in data_arguments(op):
                reads[tensor.name] = (*reads.get(tensor.name, ()), op.name)
        repeated = frozenset(tensor.name for tensor in plan.quantized if self._repeats(plan, tensor))
        stored = tuple(op.name for op in (*plan.reads, *plan.stored) if _stores(op))
        layers = describe_layers(self._captured, self._view, plan, self._scheme, self._asked)
        written = {op.name: tuple(each.name for each in planner.results(op) if each in plan.hard) for op in plan.reads}
        read = {name: readers for name, readers in reads.items() if readers}
        widened = tuple(name for name in stored if name in wider)
        return Planned(read, repeated, stored, widened, layers, written)

    def _repeats(self, plan: PlacementPlan, tensor: Node) -> bool:
        op = self._view.producer(tensor)
        return op in plan.reads and self._view.kinds[op] in _SELECT & self._scheme.same_scale


def _readers(plan: PlacementPlan, tensor: Node) -> tuple[str, ...]:
    hard = tensor in plan.hard
    return tuple(user.name for user in tensor.users if hard or tensor in plan.reads.get(user, ()))


def _stores(op: Node) -> bool:
    return any(node.op == "get_attr" for node in op.all_input_nodes)
