"""What each ATen overload is to a quantizer: its kind, where its tensors are, and what it costs.

The table is data, keyed by the name of the overload (`str(node.target)`); an overload that is not in it is of kind
`other` and is never quantized. Nothing here imports torch: nodes and shapes are only looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "clip", "hardswish", "hardsigmoid", "gelu", "silu", "sigmoid", "tanh"),
        *("leaky_relu", "prelu", "elu", "mish", "softplus"),
    }
)
"""Kinds that map one tensor element by element."""

MACS = frozenset({"conv", "conv_transpose", "linear", "matmul", "attention", "lstm", "gru", "rnn"})
"""Kinds that multiply and accumulate."""

LAYERS = MACS | {"add", "sub", "mul", "concat", "max_pool", "avg_pool", "mean", "embedding"}
"""Kinds that are reported one by one in a placement; the rest only move data or follow their input."""

NORMS = frozenset({"layer_norm", "rms_norm", "group_norm"})
RECURRENT = frozenset({"lstm", "gru", "rnn"})


@dataclass(frozen=True)
class OpSpec:
    """How to read the arguments of one overload.

    Attributes:
        kind: the word that schemes use.
        inputs: positions of the activations; a list argument counts as all its tensors.
        weight, bias: positions, None where the overload has none.
        channel_axis: axis of `weight` that holds the output channels.
    """

    kind: str
    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    bias: int | None = None
    channel_axis: int = 0


def _named(kind: str, *overloads: str, **fields: Any) -> dict[str, OpSpec]:
    return {f"aten.{overload}": OpSpec(kind, **fields) for overload in overloads}


def _elementwise() -> dict[str, OpSpec]:
    unary = {
        "relu": ("relu", "relu_"),
        "hardswish": ("hardswish", "hardswish_"),
        "hardsigmoid": ("hardsigmoid", "hardsigmoid_"),
        "gelu": ("gelu", "gelu_"),
        "silu": ("silu", "silu_"),
        "sigmoid": ("sigmoid", "sigmoid_"),
        "tanh": ("tanh", "tanh_"),
        "leaky_relu": ("leaky_relu", "leaky_relu_"),
        "prelu": ("prelu", "_prelu_kernel"),
        "elu": ("elu", "elu_"),
        "mish": ("mish", "mish_"),
        "softplus": ("softplus",),
        "clip": ("clamp", "clamp_min", "clamp_max", "hardtanh", "hardtanh_"),
        "relu6": ("relu6", "relu6_"),
    }
    table: dict[str, OpSpec] = {}
    for kind, names in unary.items():
        table |= _named(kind, *(f"{name}.default" for name in names))
    for kind in ("add", "sub", "mul"):
        table |= _named(kind, f"{kind}.Tensor", f"{kind}_.Tensor", inputs=(0, 1))
    return table


def _pools() -> dict[str, OpSpec]:
    table = _named("mean", "mean.dim")
    for rank in (1, 2, 3):
        table |= _named("max_pool", f"max_pool{rank}d.default", f"max_pool{rank}d_with_indices.default")
        table |= _named("max_pool", f"adaptive_max_pool{rank}d.default")
        table |= _named("avg_pool", f"avg_pool{rank}d.default", f"adaptive_avg_pool{rank}d.default")
        table |= _named("avg_pool", f"_adaptive_avg_pool{rank}d.default")
        table |= _named("resize_nearest", f"upsample_nearest{rank}d.default", f"upsample_nearest{rank}d.vec")
    for mode in ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d"):
        kind = "resize_linear" if mode != "bicubic2d" else "resize_cubic"
        table |= _named(kind, f"upsample_{mode}.default", f"upsample_{mode}.vec")
    return table


def _multiplying() -> dict[str, OpSpec]:
    table = _named("linear", "linear.default", weight=1, bias=2)
    table |= _named("linear", "addmm.default", inputs=(1,), weight=2, bias=0, channel_axis=1)
    table |= _named("matmul", "matmul.default", "bmm.default", "mm.default", inputs=(0, 1))
    table |= _named("conv", "convolution.default", weight=1, bias=2)
    table |= _named("attention", "scaled_dot_product_attention.default", inputs=(0, 1, 2))
    for rank in (1, 2, 3):
        table |= _named("conv", f"conv{rank}d.default", f"conv{rank}d.padding", weight=1, bias=2)
        names = (f"conv_transpose{rank}d.{end}" for end in ("default", "input"))
        table |= _named("conv_transpose", *names, weight=1, bias=2, channel_axis=1)
    for name, kind in (("lstm", "lstm"), ("gru", "gru"), ("rnn_tanh", "rnn"), ("rnn_relu", "rnn")):
        table |= _named(kind, f"{name}.input")
    return table


def _rearranging() -> dict[str, OpSpec]:
    names = (
        *("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int"),
        *("permute.default", "transpose.int", "t.default", "movedim.int", "channel_shuffle.default"),
        *("slice.Tensor", "select.int", "narrow.default", "index_select.default", "expand.default", "repeat.default"),
        *("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "alias.default", "clone.default"),
        *("contiguous.default", "roll.default", "flip.default", "pixel_shuffle.default", "pixel_unshuffle.default"),
    )
    table = _named("reshape", *names)
    table |= _named("pad", "constant_pad_nd.default", "pad.default")
    table |= _named("split", "split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int")
    return table | _named("concat", "cat.default", "concat.default")


def _norms() -> dict[str, OpSpec]:
    table = _named("layer_norm", "layer_norm.default", "native_layer_norm.default")
    table |= _named("rms_norm", "rms_norm.default", "_fused_rms_norm.default")
    table |= _named("group_norm", "group_norm.default", "native_group_norm.default", "instance_norm.default")
    table |= _named("batch_norm", "batch_norm.default", "_native_batch_norm_legit_no_training.default")
    table |= _named("softmax", "softmax.int", "_softmax.default")
    lookups = ("embedding.default", "embedding_bag.padding_idx", "_embedding_bag.default")
    return table | _named("embedding", *lookups, inputs=(1,), weight=0)


OP_TABLE: Mapping[str, OpSpec] = _elementwise() | _pools() | _multiplying() | _rearranging() | _norms()
"""Every overload that placement knows, by name."""

_OTHER = OpSpec("other", ())


def spec_of(node: Node) -> OpSpec:
    """The table's entry for a node; kind `other` where there is none."""
    return OP_TABLE.get(str(node.target), _OTHER) if node.op == "call_function" else _OTHER


def kind_of(node: Node) -> str:
    """The kind of a node, with what depends on its arguments decided.

    A clamp from zero is a `relu` or `relu6`, `convolution.default` may be a `conv_transpose`, a pad is a `reshape`
    only where it pads with zero (the one value that every quantizer has exactly), a `mean` is the one over all
    positions of an image or volume (that of a normalisation is `other`).
    """
    kind = spec_of(node).kind
    if kind == "clip":
        return _clip_kind(node)
    if str(node.target) == "aten.convolution.default" and len(node.args) > 6 and node.args[6]:
        return "conv_transpose"
    if kind == "pad":
        return "reshape" if _pads_with_zero(node) else "other"
    if kind == "mean":
        return "mean" if _is_spatial_mean(node) else "other"
    return kind


def _clip_kind(node: Node) -> str:
    name = str(node.target)
    hardtanh = "hardtanh" in name
    lo = argument(node, 1, "min_val" if hardtanh else "min", -1.0 if hardtanh else None)
    hi = argument(node, 2, "max_val" if hardtanh else "max", 1.0 if hardtanh else None)
    if "clamp_max" in name:
        lo, hi = None, argument(node, 1, "max")
    if lo != 0:
        return "clip"
    return "relu" if hi is None else "relu6" if hi == 6 else "clip"


def _is_spatial_mean(node: Node) -> bool:
    rank = len(shape_of(node.args[0]))
    axes = argument(node, 1, "dim") or ()
    return rank >= 4 and sorted(axis % rank for axis in axes) == list(range(2, rank))


def _pads_with_zero(node: Node) -> bool:
    if str(node.target) == "aten.constant_pad_nd.default":
        return not argument(node, 2, "value", 0)
    return argument(node, 2, "mode", "constant") == "constant" and not argument(node, 3, "value", None)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """A node's argument, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def nodes_in(argument: Any) -> Iterator[Node]:
    """The nodes in an argument: itself, or those in a list or tuple."""
    if isinstance(argument, list | tuple):
        for item in argument:
            yield from nodes_in(item)
    elif hasattr(argument, "all_input_nodes"):
        yield argument


def data_arguments(node: Node) -> tuple[Node, ...]:
    """The nodes that a known op reads as activations (constants among them included), in order."""
    return tuple(found for position in spec_of(node).inputs for found in nodes_in(argument(node, position, "")))


def weight_argument(node: Node) -> Any:
    """The weight of a node, None where its kind has none."""
    position = spec_of(node).weight
    return None if position is None else argument(node, position, "weight")


def bias_argument(node: Node) -> Any:
    """The bias of a node, None where it has none."""
    position = spec_of(node).bias
    return None if position is None else argument(node, position, "bias")


def channel_axis(node: Node) -> int:
    """Axis of the weight that holds the output channels."""
    return 1 if kind_of(node) == "conv_transpose" else spec_of(node).channel_axis


def input_channel_axis(node: Node) -> int:
    """Axis of the activation of a `conv` or `linear` that holds the input channels."""
    rank = len(shape_of(data_arguments(node)[0]))
    return rank - 1 if kind_of(node) == "linear" else rank - len(shape_of(weight_argument(node))) + 1


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of a node or tensor; a dynamic axis counts with the size it had at capture."""
    tensor = value.meta["val"] if hasattr(value, "meta") and "val" in getattr(value, "meta", {}) else value
    return tuple(_hint(size) for size in tensor.shape)


def _hint(size: Any) -> int:
    node = getattr(size, "node", None)
    return int(size) if node is None or not hasattr(node, "hint") else int(node.hint)
