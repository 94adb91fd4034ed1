"""Taps: every rounding of a simulated graph as a place where a gradient is read, in one run of the network.

The simulated graph is the captured one with other nodes between some of its nodes: those round. Which they are, and
how they round, is not asked: whatever stands between two nodes of the captured graph is run on the float value, and
the difference that it makes is the rounding's error. So one mechanism serves every scheme and every precision.

Values and gradients are those of the float network, so that every error is that of a value which nothing rounded
before. What a scheme rounds twice (behind a reshape of what is rounded already) is for the plan to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from deploykit.capture.calls import stored
from deploykit_calibration.op_kinds import bias_argument, channel_axis, data_arguments, weight_argument
from deploykit_calibration.run_time import recurrent_of_rounded, round_rows

Read = tuple[str, str]
"""A tensor and the node that reads it rounded, by name; `STORED` and a layer for what a layer stores."""

STORED = ""


@dataclass
class Reading:
    """What one backward pass told of the roundings, by name.

    Attributes:
        tensors: sums over a tensor's elements of the products of what its error does through each two of its readers:
            the noise power, where errors of elements are independent of each other.
        weights: the same of what a layer stores, where errors of output channels are.
        slopes: sum of the squares of the plain gradient of a layer's stored operands.
        effects: what the error of a tensor does through one reader, and what those of a layer's stored operands do.
    """

    tensors: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    effects: dict[Read, float] = field(default_factory=dict)


class Taps:
    """The roundings of one simulated graph.

    Args:
        captured: the float graph.
        simulated: the same with roundings in it.
    """

    def __init__(self, captured: GraphModule, simulated: GraphModule) -> None:
        self._captured, self._simulated = captured, simulated
        self._floats = {node.name: node for node in captured.graph.nodes}
        self._nodes = {node.name: node for node in simulated.graph.nodes}
        self._operands = {
            node: list(zip(_inputs_of(self._floats[node.name]), _inputs_of(node), strict=True))
            for node in simulated.graph.nodes
            if node.name in self._floats
        }
        self._replaced = {was.name for was, now in self._same_name() if self._differs(was, now)}
        self._reading = Reading()
        self._channels: dict[str, list[Tensor]] = {}

    @property
    def reads(self) -> frozenset[Read]:
        """Every tensor that is read rounded, with its reader."""
        return frozenset((was.name, reader.name) for reader, was in self._rounded() if was.op != "get_attr")

    @property
    def stored(self) -> frozenset[str]:
        """The layers with a rounded stored operand."""
        return frozenset(reader.name for reader, was in self._rounded() if was.op == "get_attr")

    def _same_name(self) -> Iterator[tuple[Node, Node]]:
        pairs = (pair for operands in self._operands.values() for pair in operands)
        return ((was, now) for was, now in pairs if was.name == now.name and was.op == now.op == "get_attr")

    def _differs(self, was: Node, now: Node) -> bool:
        """Whether a stored tensor that nothing rounds is another one: a bias that takes a shift out, say."""
        pair = stored(self._captured, str(was.target)), stored(self._simulated, str(now.target))
        return pair[0] is not pair[1] and not torch.equal(*pair)

    def _rounded(self) -> Iterator[tuple[Node, Node]]:
        """Every reader in the simulated graph, and what it reads rounded in the captured one."""
        for reader, operands in self._operands.items():
            yield from ((reader, was) for was, now in operands if was.name != now.name or self._inside(reader, was))

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the network on one tensor for each placeholder; the outputs can be given to `read`."""
        given = iter(inputs)
        environment: dict[Node, Any] = {}
        tapped: dict[Node, tuple[_Tap, Tensor]] = {}
        with torch.enable_grad():
            for node in self._simulated.graph.nodes:
                if node.op == "placeholder":
                    environment[node] = next(given)
                elif node.op == "get_attr":
                    environment[node] = stored(self._simulated, str(node.target)).detach()
                elif node.name not in self._floats:
                    with torch.no_grad():  # a rounding, or what stands for one
                        environment[node] = _called(node, environment)
                else:
                    operands, own = self._inputs(node, environment, tapped), self._floats[node.name]
                    if node.op == "output":
                        outputs: tuple[Tensor, ...] = map_arg(own.args[0], operands.__getitem__)
                        return tuple(outputs)
                    environment[node] = _called(own, operands)
        raise AssertionError("a graph without an output")

    def read(self, outputs: tuple[Tensor, ...], direction: Mapping[int, Tensor], *, keep: bool) -> Reading:
        """What the errors do to the outputs along a direction.

        Args:
            outputs: the outputs of `run`.
            direction: a direction for each output, by the output's position; each is of its output's shape.
            keep: there will be another direction for these outputs.
        """
        self._reading, self._channels = Reading(), {}
        pairs = [(outputs[at], each) for at, each in direction.items() if outputs[at].requires_grad]
        if pairs:
            values, along = ([pair[at] for pair in pairs] for at in (0, 1))
            torch.autograd.backward(values, along, retain_graph=keep)
        for name, parts in self._channels.items():
            self._reading.weights[name] = _power(parts)
            self._reading.effects[STORED, name] = sum(float(part.sum()) for part in parts)
        return self._reading

    def _inputs(
        self, reader: Node, environment: Mapping[Node, Any], tapped: dict[Node, tuple[_Tap, Tensor]]
    ) -> dict[Node, Any]:
        """What a reader is given, by the nodes of the captured graph: float values, with taps on what it rounds."""
        found: dict[Node, Any] = {}
        for was, now in self._operands[reader]:
            value = environment[now]
            inside = self._inside(reader, was)
            if was.name == now.name and not inside and was.name not in self._replaced:
                found[was] = value
            elif was.op == "get_attr":
                found[was] = self._stored(reader, was, value)
            else:
                at = reader if inside else now
                if at not in tapped:
                    rounded = _rounded_inside(reader, value) if inside else value
                    tapped[at] = _tapped(was.name, environment[self._nodes[was.name]], rounded, self._note)
                tap, root = tapped[at]
                found[was] = tap.read_by(reader.name, root)
        return found

    def _inside(self, reader: Node, was: Node) -> bool:
        """Whether an operator itself rounds what it reads: a recurrent one, whose steps round their state too.

        The error of the states is left out: it is made and passed on within the operator.
        """
        return reader.target is recurrent_of_rounded and was in data_arguments(self._floats[reader.name])

    def _note(self, tap: _Tap) -> None:
        products = {reader: torch.nan_to_num(slope * tap.error) for reader, slope in tap.slopes.items()}
        powers = self._reading.tensors.setdefault(tap.name, {})
        for first, left in products.items():
            self._reading.effects[tap.name, first] = float(left.sum())
            for second, right in products.items():
                powers[first, second] = float(torch.dot(left.reshape(-1), right.reshape(-1)))
        tap.slopes.clear()

    def _stored(self, reader: Node, source: Node, rounded: Tensor) -> Tensor:
        """A stored operand whose gradient is noted."""
        value = stored(self._captured, str(source.target)).detach()
        error = rounded - value
        axis = _channel_axis(self._floats[reader.name], source)
        weighs = source is not bias_argument(self._floats[reader.name])

        def note(slope: Tensor) -> None:
            effect = torch.nan_to_num(slope * error)
            moved = effect.movedim(axis, 0).flatten(1).sum(1) if effect.ndim > 1 else effect
            self._channels.setdefault(reader.name, []).append(moved)
            if weighs:
                known = self._reading.slopes.get(reader.name, 0.0)
                self._reading.slopes[reader.name] = known + float(torch.nan_to_num(slope).square().sum())

        tapped = _leaf(value.clone())
        tapped.register_hook(note)
        return tapped


@dataclass(eq=False)
class _Tap:
    """One rounded tensor: the gradients of its readers, put together when the last one is there.

    It does not hold the tensor: the tensor's hook holds the tap, and autograd's graph, which the garbage collector does
    not see into, would never be freed.
    """

    name: str
    error: Tensor
    slopes: dict[str, Tensor] = field(default_factory=dict)

    def read_by(self, reader: str, root: Tensor) -> Tensor:
        """The tensor, for one reader."""
        edge: Tensor = root.view_as(root)
        edge.register_hook(lambda slope: self.slopes.__setitem__(reader, slope))
        return edge


def _tapped(name: str, value: Tensor, rounded: Tensor, note: Callable[[_Tap], None]) -> tuple[_Tap, Tensor]:
    """The tap of a rounded tensor, and the tensor that its readers are given."""
    tap = _Tap(name, (rounded - value).detach())
    root: Tensor = value.view_as(value) if value.requires_grad else _leaf(value.detach())
    root.register_hook(lambda _: note(tap))
    return tap, root


def _rounded_inside(reader: Node, value: Tensor) -> Tensor:
    rounding: Any = reader.args[1]
    return round_rows(value, *rounding)


def _leaf(value: Tensor) -> Tensor:
    """A tensor whose gradient goes to its hooks and is not kept."""
    leaf: Tensor = value.requires_grad_()
    leaf.register_post_accumulate_grad_hook(lambda tensor: setattr(tensor, "grad", None))
    return leaf


def _inputs_of(node: Node) -> list[Node]:
    found: list[Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _called(node: Node, values: Mapping[Node, Any]) -> Any:
    args: Any = map_arg(node.args, values.__getitem__)
    kwargs: Any = map_arg(node.kwargs, values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _channel_axis(op: Node, source: Node) -> int:
    return channel_axis(op) if source is weight_argument(op) else 0


def _power(parts: list[Tensor]) -> float:
    """The power of what a layer stores: what weight and bias do to one channel adds up before it is squared."""
    if len({part.shape for part in parts}) == 1:
        return float(torch.stack(parts).sum(0).square().sum())
    return sum(float(part.square().sum()) for part in parts)
