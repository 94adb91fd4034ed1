"""Layer, group, instance, batch and root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch

from deploykit_targets._onnx.ops.table import Call, Value, translates


@translates("aten.layer_norm.default", "aten.native_layer_norm.default")
def layer_norm(c: Call) -> Value:
    """LayerNormalization over the last axes; a missing weight is a one."""
    shape = c["normalized_shape"]
    weight = c.value("weight") or c.constant(torch.ones(shape), torch.float32)
    axis = c.meta("input").dim() - len(shape)
    arguments = (c.value("input"), weight, c.value("bias"))
    result = c.op("LayerNormalization", *arguments, axis=axis, epsilon=float(c["eps"]))
    return result if isinstance(c.out, torch.Tensor) else _first_only(c, result)


def _first_only(c: Call, result: str) -> Value:
    """The normalised values of an operator that also returns statistics; who reads those is refused."""
    if c.read_parts() - {0}:
        raise NotImplementedError("the statistics of a normalisation as values")
    return (result,)


@translates("aten.rms_norm.default")
def rms_norm(c: Call) -> str:
    """`x / sqrt(mean(x^2) + eps)`, times a weight; written out, opset 23 has it as one operator."""
    axes = list(range(-len(c["normalized_shape"]), 0))
    eps = c.get("eps", torch.finfo(c.out.dtype).eps)
    value = c.value("input")
    mean = c.op("ReduceMean", c.op("Mul", value, value), c.ints(axes), keepdims=1)
    scaled = c.op("Div", value, c.op("Sqrt", c.op("Add", mean, c.constant(eps))))
    return c.op("Mul", scaled, c.value("weight")) if c.get("weight") is not None else scaled


@translates("aten.group_norm.default", "aten.native_group_norm.default")
def group_norm(c: Call) -> Value:
    """Instance normalisation over the groups, then weight and bias per channel (stable over all opsets)."""
    data = "input" if "input" in c.arguments else "self"
    meta, groups = c.meta(data), c.get("num_groups", c.get("group"))
    folded = c.op("Reshape", c.value(data), c.ints([0, groups, -1]))
    ones = c.constant(torch.ones(groups), torch.float32)
    zeros = c.constant(torch.zeros(groups), torch.float32)
    normed = c.op("InstanceNormalization", folded, ones, zeros, epsilon=float(c["eps"]))
    result = c.op("Reshape", normed, _shape_of(c, meta, data))
    result = _per_channel(c, result, meta.dim())
    return result if isinstance(c.out, torch.Tensor) else _first_only(c, result)


def _shape_of(c: Call, meta: torch.Tensor, data: str) -> str:
    if sum(not isinstance(size, int) for size in meta.shape) <= 1:
        return c.ints([size if isinstance(size, int) else -1 for size in meta.shape])
    return c.op("Shape", c.value(data))


def _per_channel(c: Call, value: str, rank: int) -> str:
    """Weight and bias of shape (channels,), given the trailing ones that broadcasting needs."""
    for name, op_type in (("weight", "Mul"), ("bias", "Add")):
        if c.get(name) is not None:
            tensor = c.source.constant_of(c[name])
            if tensor is not None:
                factor = c.constant(tensor.reshape([-1] + [1] * (rank - 2)), tensor.dtype)
            else:
                factor = c.op("Unsqueeze", c.value(name), c.ints(range(1, rank - 1)))
            value = c.op(op_type, value, factor)
    return value


@translates(
    "aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default", "aten.native_batch_norm.default"
)
def batch_norm(c: Call) -> Value:
    """BatchNormalization with its running statistics."""
    if c.get("training", False):
        raise NotImplementedError("batch normalisation in training mode")
    channels = c.meta("input").shape[1]
    weight = c.value("weight") or c.constant(torch.ones(channels), torch.float32)
    bias = c.value("bias") or c.constant(torch.zeros(channels), torch.float32)
    statistics = (c.value("running_mean"), c.value("running_var"))
    result = c.op("BatchNormalization", c.value("input"), weight, bias, *statistics, epsilon=float(c["eps"]))
    return result if isinstance(c.out, torch.Tensor) else _first_only(c, result)


@translates("aten.instance_norm.default")
def instance_norm(c: Call) -> str:
    """InstanceNormalization from the sample's own statistics."""
    if not c.get("use_input_stats", True):
        raise NotImplementedError("instance normalisation with running statistics")
    channels: Any = c.meta("input").shape[1]
    weight = c.value("weight") or c.constant(torch.ones(channels), torch.float32)
    bias = c.value("bias") or c.constant(torch.zeros(channels), torch.float32)
    return c.op("InstanceNormalization", c.value("input"), weight, bias, epsilon=float(c["eps"]))
