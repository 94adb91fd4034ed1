"""Convolutions and pooling over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploykit_targets._onnx.ops.table import Call, Value, translates


def _per_axis(value: Any, axes: int) -> list[int]:
    """A number or list as one entry per spatial axis."""
    entries = list(value) if isinstance(value, Sequence) else [value]
    return entries * axes if len(entries) == 1 else entries


def _pads(padding: Any, axes: int) -> list[int]:
    """Symmetric padding in ONNX's order: all begins, then all ends."""
    return _per_axis(padding, axes) * 2


def _same_pads(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """PyTorch's padding='same': an odd surplus goes to the end."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def _batched(c: Call, name: str, axes: int) -> tuple[str, bool]:
    """The input with a batch axis; PyTorch also takes one sample without."""
    if c.meta(name).dim() == axes + 2:
        return c.value(name), False
    return c.op("Unsqueeze", c.value(name), c.ints([0])), True


def _unbatched(c: Call, value: str, added: bool) -> str:
    return c.op("Squeeze", value, c.ints([0])) if added else value


@translates(
    *(f"aten.conv{axes}d.{overload}" for axes in (1, 2, 3) for overload in ("default", "padding")),
    "aten.convolution.default",
)
def convolution(c: Call) -> str:
    """Conv, or ConvTranspose for `convolution(transposed=True)`."""
    if c.get("transposed", False):
        return _transposed(c)
    weight = c.meta("weight").shape
    axes = len(weight) - 2
    kernel, dilation = [int(size) for size in weight[2:]], _per_axis(c["dilation"], axes)
    padding = c["padding"]
    if padding == "same":
        pads = _same_pads(kernel, dilation)
    else:
        pads = [0] * 2 * axes if padding == "valid" else _pads(padding, axes)
    value, added = _batched(c, "input", axes)
    result = c.op(
        "Conv", value, c.value("weight"), c.value("bias"),
        kernel_shape=kernel, strides=_per_axis(c["stride"], axes), pads=pads, dilations=dilation, group=c["groups"],
    )  # fmt: skip
    return _unbatched(c, result, added)


@translates("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(c: Call) -> Value:
    """ConvTranspose with output padding."""
    return _transposed(c)


def _transposed(c: Call) -> str:
    weight = c.meta("weight").shape
    axes = len(weight) - 2
    value, added = _batched(c, "input", axes)
    result = c.op(
        "ConvTranspose", value, c.value("weight"), c.value("bias"),
        kernel_shape=[int(size) for size in weight[2:]], strides=_per_axis(c["stride"], axes),
        pads=_pads(c["padding"], axes), output_padding=_per_axis(c["output_padding"], axes),
        dilations=_per_axis(c["dilation"], axes), group=c["groups"],
    )  # fmt: skip
    return _unbatched(c, result, added)


def _axes_of(c: Call) -> int:
    return int(str(c.node.target).split("_pool")[1][0])


@translates("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(c: Call) -> Value:
    """MaxPool; without a stride PyTorch means the kernel size."""
    return _max_pool(c)


def _max_pool(c: Call) -> str:
    axes = _axes_of(c)
    kernel = _per_axis(c["kernel_size"], axes)
    value, added = _batched(c, "self", axes)
    result = c.op(
        "MaxPool", value, kernel_shape=kernel, strides=_per_axis(c["stride"] or kernel, axes),
        pads=_pads(c["padding"], axes), dilations=_per_axis(c["dilation"], axes), ceil_mode=int(c["ceil_mode"]),
    )  # fmt: skip
    return _unbatched(c, result, added)


@translates("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def max_pool_with_indices(c: Call) -> Value:
    """The pooled values; the indices have another meaning in ONNX (flat over the whole tensor) and are refused."""
    if c.read_parts() - {0}:
        raise NotImplementedError("the indices of max pooling")
    return (_max_pool(c),)


@translates("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def avg_pool(c: Call) -> str:
    """AveragePool."""
    axes = _axes_of(c)
    if c.get("divisor_override") is not None:
        raise NotImplementedError("average pooling with divisor_override")
    kernel = _per_axis(c["kernel_size"], axes)
    value, added = _batched(c, "self", axes)
    result = c.op(
        "AveragePool", value, kernel_shape=kernel, strides=_per_axis(c["stride"] or kernel, axes),
        pads=_pads(c["padding"], axes), ceil_mode=int(c["ceil_mode"]),
        count_include_pad=int(c["count_include_pad"]),
    )  # fmt: skip
    return _unbatched(c, result, added)


@translates(
    *(f"aten.{kind}_pool{axes}d.default" for kind in ("adaptive_avg", "adaptive_max") for axes in (1, 2, 3)),
    "aten._adaptive_avg_pool2d.default",
)
def adaptive_pool(c: Call) -> Value:
    """Pool to one element by global pooling, else by fixed windows, where the output size divides the input's."""
    axes, name = _axes_of(c), str(c.node.target)
    kind = "Max" if "max" in name else "Average"
    inside, wanted = c.meta("self").shape[-axes:], _per_axis(c["output_size"], axes)
    value, added = _batched(c, "self", axes)
    if all(size == 1 for size in wanted):
        pooled = c.op(f"Global{kind}Pool", value)
    else:
        pooled = _fixed_windows(c, value, kind, inside, wanted)
    pooled = _unbatched(c, pooled, added)
    if not isinstance(c.out, (tuple, list)):
        return pooled
    if c.read_parts() - {0}:
        raise NotImplementedError("the indices of adaptive max pooling")
    return (pooled,)


def _fixed_windows(c: Call, value: str, kind: str, inside: Any, wanted: list[int]) -> str:
    if any(not isinstance(have, int) or have % want for have, want in zip(inside, wanted, strict=True)):
        raise NotImplementedError(f"adaptive pooling from {list(inside)} to {wanted}: the size does not divide evenly")
    window = [have // want for have, want in zip(inside, wanted, strict=True)]
    if all(size == 1 for size in window):
        return c.op("Identity", value)
    return c.op(f"{kind}Pool", value, kernel_shape=window, strides=window)
