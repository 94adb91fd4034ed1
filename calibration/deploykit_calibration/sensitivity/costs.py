"""What a layer costs quantised and in float: from the device table, or as measured.

The time of a layer is the roofline of `deploykit.plugin.estimate`, layer by layer: its multiply-accumulates at the
device's rate, or its weights at the bandwidth of its memory, whichever takes longer. A layer that multiplies nothing
(an addition, a pool) costs what it reads and writes: its neighbours are fused to it, or it to them, only where both are
of one type. A device whose table has no rates gets relative costs, in which a multiply-accumulate, or an element that
is moved, costs as many units as its type has bytes. Neither is a latency, and both say so; where both builds were
profiled on the device, `measured` has what its runtime told.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from deploykit.contract.formats import dtype_of, rates_of
from deploykit_calibration.between import float_between
from deploykit_calibration.op_kinds import shape_of

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit.contract.devices import Device
    from deploykit.contract.session import OpTime
    from deploykit_calibration.placement import LayerPlacement
    from deploykit_calibration.prepared import Prepared

ESTIMATED, RELATIVE, MEASURED = "us, estimated", "MACs x bytes", "us, measured"


@dataclass(frozen=True)
class Cost:
    """The cost of one layer, in the unit of its `Costs`."""

    quantized: float
    kept: float

    @property
    def extra(self) -> float:
        """What keeping the layer costs, never less than nothing."""
        return max(self.kept - self.quantized, 0.0)


@dataclass(frozen=True)
class Costs:
    """The costs of all layers.

    Attributes:
        unit: what the figures are: `us, estimated`, `MACs x bytes` or `us, measured`.
        rest: what a layer that is kept computes in.
        layers: the layers, by node name.
    """

    unit: str
    rest: str
    layers: Mapping[str, Cost]

    def of(self, layers: Iterable[LayerPlacement], apart: Collection[str] = ()) -> float:
        """The sum over a placement, in which some layers are kept though they are not float."""
        return sum(
            cost.kept if layer.precision == "float" or layer.name in apart else cost.quantized
            for layer in layers
            if (cost := self.layers.get(layer.name)) is not None
        )


def costs_of(prepared: Prepared, rest: str = "") -> Costs:
    """Costs of a prepared model's layers by the table of its device.

    Args:
        rest: what a layer that is kept becomes, as targets count it; what the target's file has between its integers
            where nothing is given.
    """
    device, rest, narrow = prepared.device, rest or rest_of(prepared), quantized_dtype(prepared)
    layer_cost = _estimated if device.peak_tops else _relative
    nodes = {node.name: node for node in prepared.captured.graph_module.graph.nodes}
    moved = {layer.name: 0 if layer.macs else _elements(nodes[layer.name]) for layer in prepared.layers}
    found = {layer.name: layer_cost(layer, moved[layer.name], device, narrow, rest) for layer in prepared.layers}
    return Costs(ESTIMATED if device.peak_tops else RELATIVE, rest, found)


def measured(prepared: Prepared, quantized: Iterable[OpTime], kept: Iterable[OpTime]) -> Costs:
    """Costs as the device's runtime told them: the operators' times in a profile of each build.

    Args:
        quantized: the times of the artifact.
        kept: the times of the float build. Where a runtime fused a layer into another one, its time is in that one.
    """
    times = [{time.name: time.median_us for time in each} for each in (quantized, kept)]
    names = [layer.name for layer in prepared.layers if any(layer.name in each for each in times)]
    found = {name: Cost(times[0].get(name, 0.0), times[1].get(name, 0.0)) for name in names}
    return Costs(MEASURED, rest_of(prepared), found)


def rest_of(prepared: Prepared) -> str:
    """What layers that are kept compute in: the type of the target's file between its integers."""
    rest = prepared.precision.row.rest
    return rest if rest != "float32" else float_between(prepared)


def quantized_dtype(prepared: Prepared) -> str:
    """What quantised layers are counted in."""
    row = prepared.precision.row
    if row.activations.is_float:
        return f"fp{row.activations.bits}" if row.is_static else f"int{row.weights.bits}-weights"
    return f"int{row.activations.bits}"


def _elements(op: Node) -> int:
    """What an operator reads and writes."""
    tensors = [node for node in (op, *op.all_input_nodes) if isinstance(node.meta.get("val"), Tensor)]
    return sum(math.prod(shape_of(node)) for node in tensors)


def _estimated(layer: LayerPlacement, moved: int, device: Device, narrow: str, rest: str) -> Cost:
    return Cost(_microseconds(layer, moved, device, narrow), _microseconds(layer, moved, device, rest))


def _microseconds(layer: LayerPlacement, moved: int, device: Device, dtype: str) -> float:
    usable = [rate for rate in rates_of(dtype) if rate in device.peak_tops]
    rate = device.peak_tops[usable[0]] if usable else min(device.peak_tops.values())
    stored = 0 if layer.kind == "embedding" else layer.weights
    bytes_moved = dtype_of(dtype).weight_bytes * stored + dtype_of(dtype).bytes * moved
    memory = bytes_moved / (device.memory_gb_per_s * 1e3) if device.memory_gb_per_s else 0.0
    return max(2 * layer.macs / (rate * 1e6), memory)


def _relative(layer: LayerPlacement, moved: int, device: Device, narrow: str, rest: str) -> Cost:
    del device
    work = layer.macs + moved
    return Cost(work * dtype_of(narrow).weight_bytes, work * dtype_of(rest).bytes)
