"""Write a plan into a copy of the graph: quantize and dequantize nodes, integer weights and biases.

Every node of the captured graph keeps its name; new nodes are named for what they round: `conv2d_1_q`,
`conv2d_1_dq`, `conv2d_1_weight_dq`, `conv2d_1_bias_dq`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from deploykit.capture.calls import stored
from deploykit.contract.errors import CalibrationError, ConversionError
from deploykit.contract.formats import TensorScheme
from deploykit.contract.scheme import Scheme
from deploykit_calibration.bias import INT32_MAX, corrected, quantize_bias, scale_floor, tap_coverage
from deploykit_calibration.channel_sums import ChannelSums
from deploykit_calibration.graph_view import GraphView, is_constant
from deploykit_calibration.op_kinds import (
    bias_argument,
    channel_axis,
    data_arguments,
    input_channel_axis,
    shape_of,
    weight_argument,
)
from deploykit_calibration.plan import PlacementPlan
from deploykit_calibration.roundings import ROUNDING, BiasRounding, StoredRounding, WeightRounding
from deploykit_calibration.weights import DTYPES, WeightQuant, weight_quant

_OPS = torch.ops.quantized_decomposed
_INT32 = (-INT32_MAX, INT32_MAX, torch.int32)


@dataclass(frozen=True)
class TensorParams:
    """Scale (exact in float32) and zero-point of one activation tensor."""

    scale: float
    zero_point: int


class Rewriter:
    """Copies one captured graph and inserts what a plan says.

    Args:
        module: captured.
        view: the view of its graph.
        scheme: how tensors become integers.
        layer_inputs: what calibration knows of the input channels of layers, for `bias_correction`.
    """

    def __init__(
        self, module: GraphModule, view: GraphView, scheme: Scheme, layer_inputs: Mapping[str, ChannelSums]
    ) -> None:
        self._source, self._view, self._scheme = module, view, scheme
        self._layer_inputs = layer_inputs if scheme.bias_correction else {}
        self._graph = Graph()
        self._copies: dict[Node, Node] = {}
        self._buffers: dict[str, Any] = {}
        self._taken = {str(node.target) for node in view.graph.nodes if node.op == "get_attr"}
        self._weights: dict[tuple[str, int | None, bytes], tuple[Node, WeightQuant]] = {}

    def run(self, plan: PlacementPlan, params: Mapping[Node, TensorParams]) -> GraphModule:
        """Build the q/dq graph.

        Args:
            plan: what reads and writes integers.
            params: the parameters of every tensor in `plan.quantized`.
        Returns:
            A new module that shares float parameters with the captured one; the captured one is untouched.
        """
        self._copy()
        for tensor in self._view.order:
            if tensor in params and tensor in plan.quantized:
                self._round(tensor, params[tensor], plan)
        for op, reads in plan.reads.items():
            self._weigh(op, [params[tensor].scale for tensor in reads])
        for op, own in plan.stored.items():
            self._round_weight(op, own.weight)
        return self._finish()

    def _copy(self) -> None:
        for node in self._view.graph.nodes:
            copy = self._graph.node_copy(node, self._copies.__getitem__)
            if node.op != "output" and copy.name != node.name:
                raise ConversionError(f"node {node.name} of the captured graph was renamed to {copy.name} in its copy")
            self._copies[node] = copy

    def _round(self, tensor: Node, params: TensorParams, plan: PlacementPlan) -> None:
        """Put q and dq behind a tensor, and let those read dq that should."""
        copy, scheme = self._copies[tensor], self._scheme.activation
        details = (params.scale, params.zero_point, scheme.quant_min, scheme.quant_max, DTYPES[scheme.dtype])
        value = tensor.meta["val"]
        with self._graph.inserting_after(self._insertion_point(tensor)):
            q = self._node(f"{tensor.name}_q", _OPS.quantize_per_tensor.default, (copy, *details), value, details[-1])
        with self._graph.inserting_after(q):
            dq = self._node(f"{tensor.name}_dq", _OPS.dequantize_per_tensor.default, (q, *details), value)
        for user in tensor.users:
            if tensor in plan.hard or tensor in plan.reads.get(user, ()):
                self._copies[user].replace_input_with(copy, dq)

    def _insertion_point(self, tensor: Node) -> Node:
        if tensor.op != "placeholder":
            return self._copies[tensor]
        return [self._copies[node] for node in self._view.order if node.op == "placeholder"][-1]

    def _node(
        self,
        name: str,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        like: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Node:
        node = self._graph.create_node("call_function", target, args, name=name)
        node.meta["val"] = like if dtype is None else like.to(dtype)
        return node

    def _constant(self, name: str, value: Tensor) -> Node:
        while name in self._taken:  # a parameter of the model may be called so
            name += "_"
        self._taken.add(name)
        self._buffers[name] = value
        node = self._graph.create_node("get_attr", name, name=name)
        node.meta["val"] = torch.empty_like(value, device="meta")
        return node

    # Weights and biases.

    def _weigh(self, op: Node, input_scales: list[float]) -> None:
        for weight, axis in self._view.stored_operands(op):
            bias = bias_argument(op)
            integer_bias = self._scheme.bias == "int32" and is_constant(bias) and weight is weight_argument(op)
            floor = scale_floor(self._value(bias), input_scales[0]) if integer_bias else None
            with self._graph.inserting_before(self._copies[op]):
                dq, quant = self._weight(op, weight, axis, floor)
                fits = (str(bias.target), input_scales[0]) if floor is not None else (None, 1.0)
                dq.meta.setdefault(ROUNDING, WeightRounding(str(weight.target), axis, *fits))
                self._copies[op].replace_input_with(self._copies[weight], dq)
                new = self._new_bias(op, input_scales[0], quant, integer=integer_bias)
                if new is not None:
                    new.meta[ROUNDING] = self._bias_rounding(
                        op, dq.meta[ROUNDING], input_scales[0], is_integer=integer_bias
                    )
                    self._copies[op].replace_input_with(self._copies[bias], new)

    def _round_weight(self, op: Node, form: TensorScheme) -> None:
        """Give an op the float values that its narrow weight stands for, and a bias that is corrected for them."""
        for number, (weight, axis) in enumerate(self._view.stored_operands(op)):
            rule = StoredRounding(str(weight.target), axis, form)
            rounded = rule.of(lambda _, own=weight: self._value(own), self._scheme)  # type: ignore[misc]
            with self._graph.inserting_before(self._copies[op]):
                name = f"{op.name}_weight_rounded{f'_{number}' if number else ''}"
                made = self._constant(name, rounded)
                made.meta[ROUNDING] = rule
                self._copies[op].replace_input_with(self._copies[weight], made)
                error = rounded - self._value(weight)
                new = self._corrected_bias(op, error) if is_constant(bias_argument(op)) else None
                if new is not None:
                    new.meta[ROUNDING] = self._bias_rounding(op, rule, 1.0, is_integer=False)
                    self._copies[op].replace_input_with(self._copies[bias_argument(op)], new)

    def _bias_rounding(
        self, op: Node, weight: WeightRounding | StoredRounding, input_scale: float, *, is_integer: bool
    ) -> BiasRounding:
        """How the bias that `_new_bias` gave follows from the stored one."""
        seen, name, axis = self._layer_inputs.get(op.name), str(bias_argument(op).target), channel_axis(op)
        correction = (self._input_mean(op, seen), tap_coverage(op)) if seen is not None else (None, None)
        return BiasRounding(name, weight, input_scale, is_integer, axis, *correction)

    def _value(self, node: Node) -> Tensor:
        value = stored(self._source, str(node.target))
        assert isinstance(value, Tensor)
        return value.detach()

    def _weight(self, op: Node, weight: Node, axis: int | None, floor: Tensor | None) -> tuple[Node, WeightQuant]:
        """The dequantize node of a weight; one for all layers that share weight and scales."""
        quant = weight_quant(self._value(weight), axis, self._scheme, floor=floor, name=f"weight {weight.target}")
        key = (str(weight.target), quant.axis, quant.scales.numpy().tobytes())
        if key not in self._weights:
            self._weights[key] = self._write_weight(f"{op.name}_weight", weight, quant), quant
        dq, quant = self._weights[key]
        return dq, quant

    def _write_weight(self, name: str, weight: Node, quant: WeightQuant) -> Node:
        limits = (quant.quant_min, quant.quant_max, quant.dtype)
        details: tuple[Any, ...] = (float(quant.scales[0]), 0, *limits)
        form = "tensor"
        if quant.axis is not None:
            scales = self._constant(f"{name}_scale", quant.scales)
            zeros = self._constant(f"{name}_zero_point", quant.zero_points)
            details, form = (scales, zeros, quant.axis, *limits), "channel"
        like = weight.meta["val"]
        if self._scheme.weights == "folded":
            q = self._constant(f"{name}_q", quant.quantize(self._value(weight)))
        else:
            operator = getattr(_OPS, f"quantize_per_{form}").default
            q = self._node(f"{name}_q", operator, (self._copies[weight], *details), like, quant.dtype)
        return self._node(f"{name}_dq", getattr(_OPS, f"dequantize_per_{form}").default, (q, *details), like)

    def _new_bias(self, op: Node, input_scale: float, quant: WeightQuant, *, integer: bool) -> Node | None:
        """The bias of a layer in the scheme's form, without the shift that rounding its weight causes.

        None where it stays as it is: float, and the input's mean is not known.
        """
        if op.name not in self._layer_inputs:
            return self._integer_bias(op, self._value(bias_argument(op)), input_scale, quant) if integer else None
        error = quant.error(self._value(weight_argument(op)))
        if not integer:
            return self._corrected_bias(op, error)
        return self._integer_bias(op, self._without_shift(op, error), input_scale, quant)

    def _corrected_bias(self, op: Node, error: Tensor) -> Node | None:
        if op.name not in self._layer_inputs:
            return None
        return self._constant(f"{op.name}_bias_corrected", self._without_shift(op, error))

    def _without_shift(self, op: Node, error: Tensor) -> Tensor:
        mean = self._input_mean(op, self._layer_inputs[op.name])
        axes = error.transpose(0, channel_axis(op))
        return corrected(self._value(bias_argument(op)), axes, mean, tap_coverage(op))

    def _input_mean(self, op: Node, seen: ChannelSums) -> NDArray[np.float64]:
        channels = shape_of(data_arguments(op)[0])[input_channel_axis(op)]
        if seen.whole.size != channels:
            raise CalibrationError(
                f"the calibration table has {seen.whole.size} channels of the input of {op.name}, which has {channels}",
                hint="the table is damaged: calibrate again",
            )
        return seen.mean

    def _integer_bias(self, op: Node, bias: Tensor, input_scale: float, quant: WeightQuant) -> Node:
        values, scales = quantize_bias(bias, input_scale, quant.scales)
        name = f"{op.name}_bias"
        q = self._constant(f"{name}_q", values)
        scale = self._constant(f"{name}_scale", scales)
        zeros = self._constant(f"{name}_zero_point", torch.zeros(scales.shape, dtype=torch.int64))
        like = bias_argument(op).meta["val"]
        return self._node(f"{name}_dq", _OPS.dequantize_per_channel.default, (q, scale, zeros, 0, *_INT32), like)

    def _finish(self) -> GraphModule:
        for node in reversed(self._graph.nodes):
            if node.op == "get_attr" and not node.users:
                self._graph.erase_node(node)
        for node in self._graph.nodes:
            if node.op == "get_attr" and node.target not in self._buffers:
                self._buffers[str(node.target)] = self._value(node)
        module = GraphModule(self._buffers, self._graph, class_name="QuantizedGraphModule")
        module.graph.lint()
        return module.eval()
