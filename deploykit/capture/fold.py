"""Fold what does not depend on the inputs: constant subgraphs into constants, batch norms into the layer before them.

Batch norm is y = (x - mean) / sqrt(var + eps) * gamma + beta, so with scale = gamma / sqrt(var + eps) a layer
y = W x + b becomes W' = scale * W (per output channel) and b' = (b - mean) * scale + beta; scale and bias are computed
in float64 and rounded once. A batch norm that follows no such layer becomes a multiplication and an addition.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from deploykit.capture.derivation import Derived, of_call, own_names
from deploykit.capture.editor import Call, Editor, rank_of
from deploykit.capture.rewrite_views import same_shape

aten = torch.ops.aten

LARGEST_CONSTANT = 2**24
"""Elements; a bigger result (a broadcast mask, say) stays computed, so that files stay small."""

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_GROUPS_AT = {**dict.fromkeys(CONVOLUTIONS, 6), **dict.fromkeys(TRANSPOSED, 6)}
_BATCH_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


def merge_equal(editor: Editor) -> None:
    """Keep one of calls that compute the same from the same values (masks and sizes that every layer builds anew)."""
    first: dict[str, Call] = {}
    for node in editor.calls():
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        key = f"{node.target} {node.args!r} {sorted(node.kwargs.items())!r}"
        if key in first:
            editor.swap(node, first[key])
        else:
            first[key] = node


def fold_constants(editor: Editor) -> None:
    """Compute every subgraph without inputs once, and keep the results that the rest of the graph reads."""
    known: dict[Call, Any] = {n: editor.value(n) for n in editor.graph.nodes if n.op == "get_attr"}
    whence = {n: editor.derivation(n) for n in known}
    with torch.no_grad():
        for node in editor.calls():
            if _is_foldable(node, known):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
                known[node] = node.target(*args, **kwargs)
                whence[node] = of_call(node, whence) or known[node]
    for node in editor.calls():
        value = known.get(node)
        if isinstance(value, Tensor) and any(user not in known for user in node.users):
            constant = editor.constant(f"constant_{node.name}", _owned(value), laid_out(whence[node]))
            editor.swap(node, constant)
            known[constant], whence[constant] = value, editor.derivation(constant)
    editor.sweep()


def drop_neutral(editor: Editor) -> None:
    """Erase x + 0, x * 1 and x / 1, with scalars or constants, where shape and dtype stay."""
    for node in editor.calls(*_NEUTRAL):
        source, other = node.args[:2]
        if not isinstance(source, fx.Node) or editor.value(source) is not None:
            source, other = other, source
        if not isinstance(source, fx.Node) or (source is not node.args[0] and node.target in _ONE_SIDED):
            continue
        same = same_shape(node, source) and node.meta["val"].dtype == source.meta["val"].dtype
        if same and _is_all(editor, other, _NEUTRAL[node.target]):
            editor.swap(node, source)
    editor.sweep()


_NEUTRAL = {
    aten.add.Tensor: 0,
    aten.sub.Tensor: 0,
    aten.mul.Tensor: 1,
    aten.div.Tensor: 1,
    aten.add.Scalar: 0,
    aten.mul.Scalar: 1,
    aten.div.Scalar: 1,
}
_ONE_SIDED = (aten.sub.Tensor, aten.div.Tensor)


def _is_all(editor: Editor, other: Any, number: int) -> bool:
    value = editor.value(other)
    if value is not None:
        lasts = not editor.trainable or next(own_names(editor.derivation(other)), None) is None
        return lasts and bool((value == number).all())
    return isinstance(other, int | float) and other == number


def fold_batch_norms(editor: Editor) -> None:
    """Fold batch norms in eval mode into convolutions and linears; others become mul and add."""
    folded: dict[tuple[Any, ...], tuple[Call, Call]] = {}
    for node in editor.calls(*_BATCH_NORMS):
        legacy = node.target is not aten.batch_norm.default
        source, weight, bias, mean, var = node.args[:5]
        if not legacy and node.args[5]:
            continue  # normalises with the statistics of the batch, as instance norm does: not a constant
        if editor.value(mean) is None or editor.value(var) is None:
            continue
        norm = Norm(weight, bias, mean, var, float(node.args[6 if legacy else 7]))
        result = _result_of(node)
        key = (source.args[1:3], mean, var, weight, bias) if isinstance(source, fx.Node) else ()
        if _takes_scale(editor, source):
            if key not in folded:
                folded[key] = _folded_weights(editor, source, norm)
            _set_weights(source, *folded[key])
            editor.swap(result, source)
        else:
            editor.swap(result, _as_mul_add(editor, node, norm))
    editor.sweep()


def _is_foldable(node: Call, known: dict[Call, Any]) -> bool:
    if any(n not in known for n in node.all_input_nodes):
        return False
    if node.target is operator.getitem:
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    vals = node.meta.get("val")
    return all(_is_small(val) for val in (vals if isinstance(vals, tuple | list) else (vals,)))


def _is_small(val: Any) -> bool:
    if not isinstance(val, Tensor):
        return isinstance(val, int | float | bool | None)
    return all(isinstance(size, int) for size in val.shape) and val.numel() <= LARGEST_CONSTANT


def laid_out(derivation: Any) -> Any:
    """The same as a contiguous tensor, as constants are stored."""
    return Derived(torch.Tensor.contiguous, (derivation,)) if isinstance(derivation, Derived) else derivation


def _owned(value: Tensor) -> Tensor:
    """A contiguous tensor that shares no memory with a bigger one."""
    return value.detach().clone(memory_format=torch.contiguous_format)


class Norm(NamedTuple):
    """A batch norm in eval mode: the nodes of its constants (or None), and its epsilon."""

    weight: Any
    bias: Any
    mean: Any
    var: Any
    eps: float


def scale_of(var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The scale of y = scale * x + shift: float64, shape (channels,)."""
    scale = torch.rsqrt(var.double() + eps)
    return scale if weight is None else scale * weight.double()


def _shift_of(var: Tensor, weight: Tensor | None, eps: float, mean: Tensor, bias: Tensor | None) -> Tensor:
    shift = -mean.double() * scale_of(var, weight, eps)
    return shift if bias is None else shift + bias.double()


def folded_weight(groups: int | None, eps: float, layer_weight: Tensor, var: Tensor, weight: Tensor | None) -> Tensor:
    """The weight of a layer behind which a batch norm scales every channel.

    Args:
        groups: the groups of a transposed convolution, whose weight is (in, out / groups, ...) with the groups side by
            side along `in`; None for a layer whose weight begins with the outputs.
    """
    scale, rest = scale_of(var, weight, eps).float(), [1] * (layer_weight.dim() - (1 if groups is None else 2))
    if groups is None:
        return (layer_weight * scale.view(-1, *rest)).contiguous()
    grouped: Tensor = layer_weight.unflatten(0, (groups, -1))
    return (grouped * scale.view(groups, 1, -1, *rest)).flatten(0, 1).contiguous()


def folded_bias(
    eps: float, old: Tensor | None, var: Tensor, weight: Tensor | None, mean: Tensor, bias: Tensor | None
) -> Tensor:
    """The bias of a layer, which a batch norm scales and shifts."""
    shift = _shift_of(var, weight, eps, mean, bias)
    return (shift if old is None else old.double() * scale_of(var, weight, eps) + shift).float().contiguous()


def _factor(shape: tuple[int, ...], eps: float, var: Tensor, weight: Tensor | None) -> Tensor:
    return scale_of(var, weight, eps).float().view(shape).contiguous()


def _addend(
    shape: tuple[int, ...], eps: float, var: Tensor, weight: Tensor | None, mean: Tensor, bias: Tensor | None
) -> Tensor:
    return _shift_of(var, weight, eps, mean, bias).float().view(shape).contiguous()


def _result_of(node: Call) -> Call:
    """The node that carries the normalised tensor: item 0 of the legacy op's tuple."""
    if node.target is aten.batch_norm.default:
        return node
    return next(user for user in node.users if user.args[1] == 0)


def _takes_scale(editor: Editor, source: Any) -> bool:
    """Whether a batch norm's input is a layer with constant weights that nothing else reads."""
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return False
    is_linear = source.target is aten.linear.default and rank_of(source) == 2
    if not (is_linear or source.target in _GROUPS_AT):
        return False
    bias = source.args[2] if len(source.args) > 2 else None
    return editor.value(source.args[1]) is not None and (bias is None or editor.value(bias) is not None)


def _folded_weights(editor: Editor, layer: Call, norm: Norm) -> tuple[Call, Call]:
    """New weight and bias constants of a layer followed by a batch norm."""
    groups = None
    if layer.target in TRANSPOSED:
        groups = int(layer.args[6]) if len(layer.args) > 6 else 1
    weight, old_bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    name = str(weight.target).removesuffix(".weight")
    scaled = partial(folded_weight, groups, norm.eps)
    moved = partial(folded_bias, norm.eps)
    return (
        editor.derived(f"{name}.folded_weight", scaled, weight, norm.var, norm.weight, parameter=True),
        editor.derived(
            f"{name}.folded_bias", moved, old_bias, norm.var, norm.weight, norm.mean, norm.bias, parameter=True
        ),
    )


def _set_weights(layer: Call, weight: Call, bias: fx.Node) -> None:
    layer.args = (layer.args[0], weight, bias, *layer.args[3:])


def _as_mul_add(editor: Editor, node: Call, norm: Norm) -> Call:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = (1, -1, *[1] * (rank_of(source) - 2))
    name = str(node.args[3].target).removesuffix(".running_mean") if isinstance(node.args[3], fx.Node) else node.name
    statistics = (norm.var, norm.weight, norm.mean, norm.bias)
    factor = editor.derived(f"{name}.folded_scale", partial(_factor, shape, norm.eps), *statistics[:2])
    addend = editor.derived(f"{name}.folded_shift", partial(_addend, shape, norm.eps), *statistics)
    scaled = editor.call(aten.mul.Tensor, source, factor, before=node)
    return editor.call(aten.add.Tensor, scaled, addend, before=node)
