"""Which channels of which tensors may be scaled together without changing what a model computes.

A channel that is divided by a positive number where it is written and multiplied by it where it is read changes
nothing: convolutions, linear layers and norms take the numbers into their weights; relu, pooling, additions and moves
in between pass them on, because they are homogeneous; relu6 does below six, and only who asks for it gets channels
behind it (`capped`). SiLU, GELU and whatever else is not, and what the graph
takes and returns, keep a tensor as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from deploykit.capture.calls import bind
from deploykit_calibration.graph_view import GraphView, is_constant, is_float
from deploykit_calibration.op_kinds import argument, bias_argument, data_arguments, input_channel_axis, shape_of
from deploykit_calibration.same_scale import Groups
from deploykit_calibration.weighted_layers import WeightedLayer, readers_of, value_of, weighted_layers

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_ALIKE = frozenset({"relu", "leaky_relu", "prelu", "max_pool", "avg_pool", "mean", "resize_nearest", "resize_linear"})
_SUMS = frozenset({"add", "sub"})
_NORMS = frozenset({"layer_norm", "rms_norm"})


@dataclass(eq=False)
class ScaledChannels:
    """Tensors whose channels are scaled by the same numbers.

    Attributes:
        tensors: the tensors, with the axis that holds the channels.
        size: channels.
        writers, readers: layers that take the numbers in.
        norms: norms that write a tensor, with the names of their weight and bias ("" for none).
        capped: what a ReLU6 reads: no channel may reach six there that is scaled, before or after.
    """

    tensors: dict[Node, int] = field(default_factory=dict)
    size: int = 0
    writers: list[WeightedLayer] = field(default_factory=list)
    readers: list[WeightedLayer] = field(default_factory=list)
    norms: list[tuple[str, str]] = field(default_factory=list)
    capped: list[Node] = field(default_factory=list)


def scaled_channels(captured: CapturedModel, *, capped: bool = False) -> list[ScaledChannels]:
    """Every set of channels that can be scaled, in execution order.

    Args:
        capped: also through ReLU6, which passes a scale on as far as no channel reaches six.
    """
    return _Search(captured, capped=capped).run()


class _Search:
    def __init__(self, captured: CapturedModel, *, capped: bool) -> None:
        self._alike = _ALIKE | {"relu6"} if capped else _ALIKE
        self._view = GraphView.of(captured)
        layers = list(weighted_layers(captured))
        counts = Counter(layer.weight for layer in layers)
        self._layers = {layer.op: layer for layer in layers if counts[layer.weight] == 1}
        self._readers = readers_of(self._view)
        self._groups, self._axes, self._fixed = Groups[Node](), dict[Node, int](), set[Node]()
        self._norms: dict[Node, tuple[str, str]] = {}

    def run(self) -> list[ScaledChannels]:
        for node in self._view.order:
            if node.op in ("placeholder", "output"):
                self._fix(node, *node.all_input_nodes)
            elif node.op == "call_function":
                self._visit(node)
        fixed = {self._groups.find(node) for node in self._fixed}
        free = (group for group in self._groups if self._groups.find(group[0]) not in fixed)
        made = (self._made(group) for group in free)
        return [each for each in made if each.readers and (each.writers or each.norms)]

    def _fix(self, *tensors: Node) -> None:
        for tensor in tensors:
            self._groups.find(tensor)
        self._fixed.update(tensors)

    def _visit(self, op: Node) -> None:
        """Join what an op passes on; keep as they are what it reads or writes in another way."""
        kind = self._view.kinds[op]
        data = [tensor for tensor in data_arguments(op) if is_float(tensor)] if kind != "other" else []
        if op in self._layers:
            layer = self._layers[op]
            axis = input_channel_axis(op)
            self._set(op, axis)
            self._reads(layer.source, axis)
            if bias_argument(op) is not None and not layer.bias:
                self._fix(op)
        elif kind in _NORMS and self._norm(op):
            self._set(op, -1)
            self._fix(*data)
        elif is_float(op) and (moved := self._passed_on(op, kind, data)) is not None:
            self._set(op, moved)
            self._groups.join([op, *data])
        else:
            self._fix(op, *op.all_input_nodes)

    def _set(self, tensor: Node, axis: int) -> None:
        self._groups.find(tensor)
        self._axes[tensor] = axis % max(len(shape_of(tensor)), 1)

    def _reads(self, tensor: Node, axis: int) -> None:
        if self._axes.get(tensor) != axis % len(shape_of(tensor)):
            self._fix(tensor)

    def _passed_on(self, op: Node, kind: str, data: Sequence[Node]) -> int | None:
        """The axis of the channels in what an op writes, where it passes their scales on."""
        axes = {self._axes.get(tensor) for tensor in data}
        others = set(op.all_input_nodes) - set(data)
        if len(axes) != 1 or None in axes or any(each in self._view.activations for each in others):
            return None
        if others and kind != "prelu":
            return None
        (axis,) = axes
        assert axis is not None
        before, after = shape_of(data[0]), shape_of(op)
        if kind in self._alike:
            return axis if axis == 1 and before[:2] == after[:2] else axis if before == after else None
        if kind in _SUMS:
            return axis if len(data) == 2 and all(shape_of(each) == after for each in data) else None
        return _moved(op, axis) if kind == "reshape" else None

    def _norm(self, op: Node) -> bool:
        """Whether a norm of the last axis has a weight of its own, and no other bias."""
        arguments = bind(op)
        weight, bias = arguments.get("weight"), arguments.get("bias")
        shape = arguments.get("normalized_shape") or ()
        alone = all(node is None or (is_constant(node) and self._own(node, op)) for node in (weight, bias))
        if weight is None or not alone or len(shape) != 1 or not is_float(op):
            return False
        self._norms[op] = str(weight.target), "" if bias is None else str(bias.target)
        return True

    def _own(self, constant: Node, op: Node) -> bool:
        return self._readers[str(constant.target)] == [op]

    def _made(self, group: Sequence[Node]) -> ScaledChannels:
        tensors = {tensor: self._axes[tensor] for tensor in group}
        sizes = {shape_of(tensor)[axis] for tensor, axis in tensors.items()}
        if len(sizes) != 1:
            return ScaledChannels()
        members = set(group)
        return ScaledChannels(
            tensors,
            sizes.pop(),
            [self._layers[tensor] for tensor in group if tensor in self._layers],
            [layer for layer in self._layers.values() if layer.source in members],
            [self._norms[tensor] for tensor in group if tensor in self._norms],
            [data_arguments(tensor)[0] for tensor in group if self._view.kinds[tensor] == "relu6"],
        )


def _moved(op: Node, axis: int) -> int | None:
    """Where the channels of a tensor are after a move that keeps them together; None where they are not."""
    before, after = shape_of(data_arguments(op)[0]), shape_of(op)
    name = str(op.target)
    if name == "aten.permute.default":
        order = [each % len(before) for each in argument(op, 1, "dims")]
        return order.index(axis)
    if name == "aten.transpose.int":
        ends = [int(argument(op, place, f"dim{place - 1}")) % len(before) for place in (1, 2)]
        return ends[1 - ends.index(axis)] if axis in ends else axis
    if name in ("aten.clone.default", "aten.contiguous.default", "aten.alias.default"):
        return axis
    if name not in (
        "aten.view.default",
        "aten.reshape.default",
        "aten.flatten.using_ints",
        "aten._unsafe_view.default",
    ):
        return None
    if len(after) > axis and before[: axis + 1] == after[: axis + 1]:
        return axis
    if axis == len(before) - 1 and after and after[-1] == before[-1]:
        return len(after) - 1
    return None


def scaled_weights(captured: CapturedModel, scales: Sequence[tuple[ScaledChannels, Tensor]]) -> Mapping[str, Tensor]:
    """The stored tensors that make every tensor of a set its old value divided by the numbers, channel by channel.

    Args:
        scales: sets with their numbers, float64, shape (size,), > 0.
    """
    changed: dict[str, Tensor] = {}

    def now(name: str) -> Tensor:
        return changed[name] if name in changed else value_of(captured, name).double()

    for channels, numbers in scales:
        for layer in channels.writers:
            changed[layer.weight] = _times(now(layer.weight), 1 / numbers, layer.axis)
            if layer.bias:
                changed[layer.bias] = now(layer.bias) / numbers
        for weight, bias in channels.norms:
            for name in filter(None, (weight, bias)):
                changed[name] = now(name) / numbers
        for layer in channels.readers:
            changed[layer.weight] = now(layer.weight) * _over_inputs(layer, numbers, now(layer.weight))
    return {name: value.float() for name, value in changed.items()}


def _times(weight: Tensor, numbers: Tensor, axis: int) -> Tensor:
    return (weight.transpose(0, axis) * numbers.reshape(-1, *[1] * (weight.ndim - 1))).transpose(0, axis)


def _over_inputs(layer: WeightedLayer, numbers: Tensor, weight: Tensor) -> Tensor:
    """The number of each element's input channel, shaped to meet the weight."""
    rows = weight.transpose(0, layer.axis)
    inputs, outputs = rows.shape[1], rows.shape[0] // layer.groups
    spread = numbers.reshape(layer.groups, 1, inputs).expand(layer.groups, outputs, inputs).reshape(-1, inputs)
    return spread.reshape(*spread.shape, *[1] * (weight.ndim - 2)).transpose(0, layer.axis)


def weight_reach(captured: CapturedModel, channels: ScaledChannels) -> Tensor:
    """The largest magnitude of what each channel is multiplied with, relative to its row, float64, shape (size,)."""
    found = []
    for layer in channels.readers:
        matrices = layer.matrices(value_of(captured, layer.weight)).double().abs()
        relative = matrices / matrices.amax(2, keepdim=True).clamp(min=1e-30)
        taps = matrices.shape[2] * layer.groups // channels.size
        found.append(relative.amax(1).reshape(channels.size, taps).amax(1))
    return torch.stack(found).amax(0)
