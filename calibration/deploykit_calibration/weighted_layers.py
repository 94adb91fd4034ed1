"""Layers that multiply with a stored weight, and what they read: the view of a graph that rounding and shifting share.

A weight is seen as one matrix per group of channels, (groups, outputs, inputs), whatever its layout; what the layer
reads is seen as the rows that this matrix multiplies, (groups, rows, inputs). Layers whose weight is read by anything
else than such layers (an embedding that shares it) are left out, because both would have to agree.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from deploykit.capture.calls import bind, stored
from deploykit_calibration.bias import padded_before, per_axis
from deploykit_calibration.graph_view import GraphView, is_constant, is_float
from deploykit_calibration.op_kinds import bias_argument, channel_axis, data_arguments, shape_of, weight_argument
from deploykit_calibration.simulate import values

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_ROWS, _ROWS_PER_INPUT = 4096, 2  # so many rows say what a layer reads: of the larger number
_KINDS = frozenset({"linear", "conv"})


@dataclass(frozen=True, eq=False)
class WeightedLayer:
    """One layer.

    Attributes:
        op: node of the captured graph.
        kind: `linear` or `conv`.
        source: the node that it reads.
        weight: the stored weight's name.
        bias: the stored bias's name where it has one that no other node reads; "" else.
        axis: the axis of the weight that holds the output channels.
        groups: the groups of channels.
    """

    op: Node
    kind: str
    source: Node
    weight: str
    bias: str
    axis: int
    groups: int = 1

    @property
    def inputs(self) -> int:
        """Columns of a matrix."""
        weight = shape_of(weight_argument(self.op))
        return math.prod(weight) // weight[self.axis]

    @property
    def taps(self) -> int:
        """Neighbouring columns that are one input channel."""
        return math.prod(shape_of(weight_argument(self.op))[2:])

    def matrices(self, weight: Tensor) -> Tensor:
        """A weight, or a tensor of its shape, as (groups, outputs, inputs)."""
        rows = weight.transpose(0, self.axis).flatten(1)
        return rows.reshape(self.groups, -1, rows.shape[1])

    def in_place_of(self, weight: Tensor, matrices: Tensor) -> Tensor:
        """Matrices of `matrices(weight)` in the layout of the weight."""
        moved = weight.transpose(0, self.axis)
        return matrices.reshape(moved.shape).transpose(0, self.axis).contiguous()

    def rows_of(self, values: Sequence[Tensor], *, share: int = 1) -> Tensor:
        """What the layer multiplies its matrices with.

        Args:
            values: the values that it reads, of every sample.
            share: how many rows are worth having: one in so many.
        Returns:
            float32, shape (groups, rows, inputs); of more rows than say anything new, some at random, at positions
            that depend on the shapes alone.
        """
        limit = max(_ROWS, _ROWS_PER_INPUT * self.inputs) // (len(values) * share) + 1
        generator = torch.Generator().manual_seed(0)
        return torch.cat([self._drawn(value, limit, generator) for value in values], 1)

    def _drawn(self, value: Tensor, limit: int, generator: torch.Generator) -> Tensor:
        windows = _windows(self.op, value) if self.kind == "conv" else value.movedim(-1, 0)
        taps = len(shape_of(weight_argument(self.op))) - 2 if self.kind == "conv" else 0
        channels, positions = windows.shape[0], windows.shape[1 : windows.ndim - taps]
        count = math.prod(positions)
        drawn = torch.arange(count)
        if count > limit:
            drawn = torch.randperm(count, generator=generator)[:limit].sort().values
        places: Any = (slice(None), *torch.unravel_index(drawn, positions))
        picked = windows[places].reshape(channels, len(drawn), -1)
        grouped = picked.reshape(self.groups, channels // self.groups, *picked.shape[1:])
        return grouped.transpose(1, 2).flatten(2).float()


def _windows(op: Node, value: Tensor) -> Tensor:
    """What each position of an output sees: a view (channels, batch, *positions, *taps) of the padded input."""
    arguments, kernel = bind(op), shape_of(weight_argument(op))[2:]
    rank = len(kernel)
    value = value if value.ndim == rank + 2 else value.unsqueeze(0)
    strides, dilations = (per_axis(arguments[name], rank) for name in ("stride", "dilation"))
    befores = padded_before(arguments["padding"], kernel, dilations)
    same = arguments["padding"] == "same"
    for axis, (taps, stride, dilation, before) in enumerate(zip(kernel, strides, dilations, befores, strict=True), 2):
        after = dilation * (taps - 1) - before if same else before
        pads = [0, 0] * (value.ndim - 1 - axis) + [before, after]
        value = torch.nn.functional.pad(value, pads) if before or after else value
        value = value.unfold(axis, dilation * (taps - 1) + 1, stride)[..., ::dilation]
    return value.transpose(0, 1)


def weighted_layers(captured: CapturedModel) -> Iterator[WeightedLayer]:
    """Linear layers (products with a stored matrix are captured as such) and convolutions, in execution order."""
    view = GraphView.of(captured)
    readers = readers_of(view)
    found = [layer for op in view.ops() if (layer := _layer(view, op, readers)) is not None]
    ours = {layer.op: layer.weight for layer in found}
    for layer in found:
        if all(ours.get(reader) == layer.weight for reader in readers[layer.weight]):
            yield layer


def _layer(view: GraphView, op: Node, readers: Mapping[str, list[Node]]) -> WeightedLayer | None:
    kind = view.kinds[op]
    if kind not in _KINDS:
        return None
    weight, (source,) = weight_argument(op), data_arguments(op)
    if not (is_constant(weight) and is_float(weight) and is_float(source)) or is_constant(source):
        return None
    bias = bias_argument(op)
    own = is_constant(bias) and is_float(bias) and readers[str(bias.target)] == [op]
    groups = int(bind(op)["groups"]) if kind == "conv" else 1
    return WeightedLayer(
        op, kind, source, str(weight.target), str(bias.target) if own else "", channel_axis(op), groups
    )


def readers_of(view: GraphView) -> dict[str, list[Node]]:
    """Who reads each stored tensor, through whichever node."""
    found: dict[str, list[Node]] = defaultdict(list)
    for node in view.graph.find_nodes(op="get_attr"):
        found[str(node.target)] += node.users
    return found


def value_of(captured: CapturedModel, name: str) -> Tensor:
    """A stored tensor."""
    value = stored(captured.graph_module, name)
    assert isinstance(value, Tensor)
    return value.detach()


def rows_of_weights(
    captured: CapturedModel, samples: Sequence[Mapping[str, Tensor]], layers: Sequence[WeightedLayer]
) -> Iterator[tuple[str, Tensor]]:
    """What each weight multiplies in the float graph, over all layers that share it, by the weight's name."""
    sharing = Counter(layer.weight for layer in layers)
    readers: dict[str, list[WeightedLayer]] = defaultdict(list)
    for layer in layers:
        readers[layer.source.name].append(layer)
    found: dict[str, list[Tensor]] = defaultdict(list)
    with torch.inference_mode():
        for feeds in samples:
            inputs = [feeds[spec.name] for spec in captured.inputs]
            for name, value in values(captured.graph_module, inputs, readers.keys()):
                for layer in readers[name]:
                    share = sharing[layer.weight] * len(samples)
                    found[layer.weight].append(layer.rows_of([value], share=share))
    for name, rows in found.items():
        yield name, torch.cat(rows, 1)
