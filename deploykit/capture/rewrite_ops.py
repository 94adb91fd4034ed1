"""Rewrites of single ops that some converter does not know into ops that all of them do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from deploykit.capture import plain, scatter
from deploykit.capture.editor import Call, Editor, is_static, rank_of, shape_of, with_defaults

aten = torch.ops.aten

_COMPOSITES = (
    aten.einsum.default,
    aten.tensordot.default,
    aten.inner.default,
    aten.outer.default,
    aten.addcmul.default,
    aten.addcdiv.default,
    aten.kron.default,
    aten.cdist.default,
    aten.cross_entropy_loss.default,
    aten.repeat_interleave.self_int,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.hstack.default,
    aten.vstack.default,
    aten.dstack.default,
    aten.column_stack.default,
    aten.meshgrid.default,
    aten.meshgrid.indexing,
)
"""Replaced by what PyTorch itself runs for them, so that matrix products are seen by the quantiser."""

_LOGICAL = {
    aten.__and__.Tensor: (aten.logical_and.default, aten.bitwise_and.Tensor),
    aten.__or__.Tensor: (aten.logical_or.default, aten.bitwise_or.Tensor),
    aten.__xor__.Tensor: (aten.logical_xor.default, aten.bitwise_xor.Tensor),
    aten.bitwise_and.Tensor: (aten.logical_and.default, aten.bitwise_and.Tensor),
    aten.bitwise_or.Tensor: (aten.logical_or.default, aten.bitwise_or.Tensor),
    aten.bitwise_xor.Tensor: (aten.logical_xor.default, aten.bitwise_xor.Tensor),
}
"""Op -> its form for bool tensors, and for integers."""

_FILLED: dict[Any, tuple[str, float | int | None]] = {
    aten.zeros.default: ("size", 0),
    aten.ones.default: ("size", 1),
    aten.new_zeros.default: ("new", 0),
    aten.new_ones.default: ("new", 1),
    aten.new_full.default: ("new", None),
    aten.zeros_like.default: ("like", 0),
    aten.ones_like.default: ("like", 1),
    aten.full_like.default: ("like", None),
    aten.zero.default: ("like", 0),
    aten.fill.Scalar: ("like", None),
}
"""Op -> where its size stands, and its value (None: an argument)."""


def _baddbmm(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled_sum(added, torch.matmul(left, right), beta, alpha)


def _addbmm(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled_sum(added, torch.matmul(left, right).sum(0), beta, alpha)


def _scaled_sum(added: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    """`beta * added + alpha * product`; PyTorch does not look at `added` where `beta` is 0."""
    scaled = product if alpha == 1 else product * alpha
    if beta == 0:
        return scaled
    return (added if beta == 1 else added * beta) + scaled


def _conv_tbc(x: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """(time, batch, channels) and a weight (taps, in, out): a convolution along time."""
    turned = torch.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=[pad])
    return turned.permute(2, 0, 1)


def _pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """The distances between rows that lie above the diagonal."""
    rows, columns = torch.triu_indices(x.shape[0], x.shape[0], 1)
    return torch.cdist(x, x, p).flatten().index_select(0, rows * x.shape[0] + columns)


def _cosine_similarity(left: Tensor, right: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The product of two vectors over that of their lengths, neither of which is below `eps`."""
    lengths = ((each * each).sum(dim).sqrt().clamp(min=eps) for each in (left, right))
    return (left * right).sum(dim) / (next(lengths) * next(lengths))


_OWN_KERNELS: dict[Any, Callable[..., Any]] = {
    aten.baddbmm.default: _baddbmm,
    aten.addbmm.default: _addbmm,
    aten.conv_tbc.default: _conv_tbc,
    aten.pdist.default: _pdist,
    aten.cosine_similarity.default: _cosine_similarity,
    aten.index_add.default: scatter.index_add,
    aten.index_copy.default: plain.index_copy,
    aten.index_fill.int_Scalar: plain.index_fill,
    aten.index_fill.int_Tensor: plain.index_fill,
    aten.as_strided.default: plain.as_strided,
    aten.hypot.default: plain.hypot,
    aten.copysign.Tensor: plain.copysign,
    aten.copysign.Scalar: plain.copysign,
    aten.kthvalue.default: plain.kthvalue,
    aten.median.dim: plain.median,
    aten.median.default: plain.median,
    aten.cumprod.default: plain.cumprod,
    aten.searchsorted.Tensor: plain.searchsorted,
    aten.bucketize.Tensor: plain.bucketize,
    aten.rrelu.default: plain.leaky_in_evaluation,
}
"""Op -> the same with plain ones: PyTorch has kernels of their own for them, so that nothing is left to trace."""

_VALUES: dict[Any, Callable[..., Tensor]] = {
    aten.adaptive_max_pool1d.default: plain.adaptive_max_pool,
    aten.adaptive_max_pool2d.default: plain.adaptive_max_pool,
    aten.adaptive_max_pool3d.default: plain.adaptive_max_pool,
    aten.cummax.default: plain.cummax,
    aten.cummin.default: plain.cummin,
}
"""The same for ops that also tell where each value was, where nobody reads that."""


def positional_arguments(editor: Editor) -> None:
    """Give every argument that may be positional its position, so that the other passes find it there."""
    for node in editor.calls():
        if not isinstance(node.target, torch._ops.OpOverload) or not node.kwargs:
            continue
        args, kwargs = list(node.args), dict(node.kwargs)
        movable = [a for a in node.target._schema.arguments if not a.kwarg_only]
        last = max((i for i, a in enumerate(movable) if a.name in kwargs), default=-1)
        for argument in movable[len(args) : last + 1]:
            args.append(kwargs.pop(argument.name, argument.default_value))
        node.args, node.kwargs = tuple(args), kwargs


def expand_composites(editor: Editor) -> None:
    """Expand composite ops (einsum, addcmul, ...) into the plain ops PyTorch runs for them."""
    for node in editor.calls(*_COMPOSITES):
        expand(editor, node)
    for node in editor.calls(*_OWN_KERNELS):
        if not any(
            source.meta["val"].is_complex() for source in node.all_input_nodes
        ):  # pairs are written by themselves
            expand(editor, node, _OWN_KERNELS[node.target])
    for node in editor.calls(*_VALUES):
        if all(user.args[1] == 0 for user in node.users):
            values = _VALUES[node.target]
            expand(editor, node, lambda *args, of=values, **kwargs: (of(*args, **kwargs),))


def _is_complex(node: Call) -> bool:
    value = node.meta["val"]
    return isinstance(value, Tensor) and value.is_complex()


def expand(editor: Editor, node: Call, function: Callable[..., Any] | None = None, *, any_shape: bool = False) -> None:
    """Replace one call by the graph that PyTorch traces for it (static shapes only; others are left).

    Args:
        function: computes the same from the same arguments; None takes what PyTorch runs for the op itself.
        any_shape: dynamic shapes too: what is traced asks for no size.
    """
    inputs = node.all_input_nodes
    if not all(isinstance(n.meta["val"], Tensor) and (any_shape or is_static(shape_of(n))) for n in inputs):
        return

    def run(*tensors: Tensor) -> Any:
        env = dict(zip(inputs, tensors, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        return (function or node.target)(*args, **kwargs)

    with editor.fakes():
        traced = make_fx(run, pre_dispatch=function is not None)(*(n.meta["val"] for n in inputs))
    _paste(editor, node, traced, inputs)


def _paste(editor: Editor, node: Call, traced: fx.GraphModule, inputs: list[Call]) -> None:
    """Copy a traced graph in front of a node and let it take the node's place (tuple results through getitem)."""
    env: dict[Call, Any] = dict(zip((n for n in traced.graph.nodes if n.op == "placeholder"), inputs, strict=True))
    result: Any = None
    for inner in traced.graph.nodes:
        if inner.op == "call_function":
            args, kwargs = fx.map_arg((inner.args, inner.kwargs), lambda n: env[n])
            env[inner] = editor.call(inner.target, *args, before=node, **kwargs)
        elif inner.op == "get_attr":
            env[inner] = editor.constant(f"constant_{node.name}", getattr(traced, str(inner.target)).detach())
        elif inner.op == "output":
            result = fx.map_arg(inner.args[0], lambda n: env[n])
    if isinstance(result, tuple | list):
        for user in list(node.users):
            editor.swap(user, result[user.args[1]])
        editor.graph.erase_node(node)
    else:
        editor.swap(node, result)


def plain_ops(editor: Editor) -> None:
    """Diff, where with scalars, creation ops, logical operators, bmm: each to its plain form."""
    for node in editor.calls():
        rule = _RULES.get(node.target)
        if rule is not None:
            rule(editor, node)


def explicit_pools(editor: Editor) -> None:
    """Write the stride of a pool out where it defaults to the kernel size (some converters need it).

    A window larger than what it slides over, which `ceil_mode` admits, becomes as large as that: runtimes refuse it.
    """
    for node in editor.calls(*_POOLS):
        axes = _POOLS[node.target]
        if len(node.args) < 3 or not node.args[2]:
            node.args = (*node.args[:2], list(_listed(node.args[1], axes)), *node.args[3:])
        _fit_window(node, axes)


def _fit_window(node: Call, axes: int) -> None:
    source, kernel, stride, *rest = node.args
    padding = _listed(rest[0], axes) if rest else [0] * axes
    sizes = shape_of(source)[-axes:]
    dilated = "max" in str(node.target) and len(rest) > 1 and set(_listed(rest[1], axes)) != {1}
    if dilated or not is_static(sizes):
        return
    kernel, stride = _listed(kernel, axes), _listed(stride, axes)
    whole = [size + 2 * pad for size, pad in zip(sizes, padding, strict=True)]
    if any(window > most for window, most in zip(kernel, whole, strict=True)):
        fitted = [min(pair) for pair in zip(kernel, whole, strict=True)]
        # there is one window along such an axis, so its stride says nothing
        steps = [most if window > most else step for window, most, step in zip(kernel, whole, stride, strict=True)]
        node.args = (source, fitted, steps, *rest)


_POOLS = {
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten.max_pool2d_with_indices.default: 2,
}


def _listed(value: Any, length: int) -> list[int]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return items * length if len(items) == 1 else items


def _diff(editor: Editor, node: Call) -> None:
    """Differences of order one along a static dim, as slice minus slice (of what prepend and append make)."""
    source, order, dim, prepend, append = with_defaults(node, 1, 1, -1, None, None)
    axis = dim % rank_of(source)
    parts = [part for part in (prepend, source, append) if part is not None]
    if order != 1 or not is_static(shape_of(part)[axis] for part in parts):
        return
    if len(parts) > 1:
        source = editor.call(aten.cat.default, parts, axis, before=node)
    size = shape_of(source)[axis]
    later = editor.call(aten.slice.Tensor, source, axis, 1, size, before=node)
    earlier = editor.call(aten.slice.Tensor, source, axis, 0, size - 1, before=node)
    op = aten.ne.Tensor if node.meta["val"].dtype == torch.bool else aten.sub.Tensor
    editor.swap(node, editor.call(op, later, earlier, before=node))


def _where(editor: Editor, node: Call) -> None:
    """Scalars of a where become full tensors of its dtype with one element."""
    condition, *branches = node.args
    dtype = node.meta["val"].dtype
    filled = [
        b if isinstance(b, fx.Node) else editor.call(aten.full.default, [], b, dtype=dtype, before=node)
        for b in branches
    ]
    editor.swap(node, editor.call(aten.where.self, condition, *filled, before=node))


def _full(editor: Editor, node: Call) -> None:
    """Creation ops of a known static size become full."""
    kind, value = _FILLED[node.target]
    sizes = node.args[{"size": 0, "new": 1}.get(kind, 0)] if kind != "like" else list(shape_of(node))
    if value is None:
        value = node.args[2] if kind == "new" else node.args[1]
    if isinstance(value, fx.Node) or not all(isinstance(s, int | fx.Node) for s in sizes):
        return
    dtype = node.meta["val"].dtype
    editor.swap(node, editor.call(aten.full.default, list(sizes), value, dtype=dtype, before=node))


def _logical(editor: Editor, node: Call) -> None:
    for_bool, for_int = _LOGICAL[node.target]
    node.target = for_bool if node.meta["val"].dtype == torch.bool else for_int


def _logical_not(editor: Editor, node: Call) -> None:
    if node.meta["val"].dtype == torch.bool:
        node.target = aten.logical_not.default


def _addmm(editor: Editor, node: Call) -> None:
    """addmm(b, x, w) -> x @ w + b, with beta and alpha as factors where they are not one."""
    bias, source, weight = node.args
    product = editor.call(aten.matmul.default, source, weight, before=node)
    if node.kwargs.get("alpha", 1) != 1:
        product = editor.call(aten.mul.Tensor, product, node.kwargs["alpha"], before=node)
    if node.kwargs.get("beta", 1) != 1:
        bias = editor.call(aten.mul.Tensor, bias, node.kwargs["beta"], before=node)
    editor.swap(node, editor.call(aten.add.Tensor, product, bias, before=node))


def _factor(editor: Editor, node: Call) -> None:
    """The factor of the second term, which some converters refuse and some leave out, as a product."""
    alpha = node.kwargs.get("alpha", 1)
    if alpha != 1:
        scaled = editor.call(aten.mul.Tensor, node.args[1], alpha, before=node)
        editor.swap(node, editor.call(node.target, node.args[0], scaled, before=node))


def _pad(editor: Editor, node: Call) -> None:
    """Circular padding, and padding that cuts, from pieces."""
    widths = node.args[1]
    mode = node.args[2] if node.target is aten.pad.default and len(node.args) > 2 else "constant"
    if not all(isinstance(width, int) for width in widths) or (mode != "circular" and min(widths, default=0) >= 0):
        return
    if node.target is aten.pad.default:
        expand(editor, node, plain.pad)
    else:
        expand(editor, node, lambda x, widths, value=0: plain.pad(x, widths, value=value))


def _one_hot(editor: Editor, node: Call) -> None:
    """One comparison with every class: what PyTorch runs asserts and scatters."""
    indices, classes = with_defaults(node, 1, -1)
    if classes < 1:
        return
    own = editor.constant(f"classes_{node.name}", torch.arange(classes))
    found = editor.call(aten.eq.Tensor, editor.call(aten.unsqueeze.default, indices, -1, before=node), own, before=node)
    editor.swap(node, editor.call(aten._to_copy.default, found, dtype=torch.int64, before=node))


def _bilinear(editor: Editor, node: Call) -> None:
    """x A y for every A, as a product with all of them and one with y: matrix products that every target has."""
    left, right, weight, bias = with_defaults(node, 3, None)
    outputs, inner, width = shape_of(weight)
    turned = editor.call(aten.permute.default, weight, [1, 0, 2], before=node)
    matrix = editor.call(aten.reshape.default, turned, [inner, outputs * width], before=node)
    product = editor.call(aten.matmul.default, left, matrix, before=node)
    parts = editor.call(aten.reshape.default, product, [*shape_of(left)[:-1], outputs, width], before=node)
    column = editor.call(aten.unsqueeze.default, right, -1, before=node)
    result = editor.call(
        aten.squeeze.dim, editor.call(aten.matmul.default, parts, column, before=node), -1, before=node
    )
    editor.swap(node, result if bias is None else editor.call(aten.add.Tensor, result, bias, before=node))


def _atan2(editor: Editor, node: Call) -> None:
    """atan(y / x), turned by half a circle on the left: what ONNX and Core ML make of it gives -pi at y = 0, x < 0."""
    y, x = (_as_float(editor, node, argument) for argument in node.args)
    zero, one, half, whole = (
        editor.call(aten.full.default, [], value, dtype=node.meta["val"].dtype, before=node)
        for value in (0.0, 1.0, math.pi / 2, math.pi)
    )
    upright = editor.call(aten.eq.Scalar, x, 0, before=node)
    ratio = editor.call(aten.div.Tensor, y, editor.call(aten.where.self, upright, one, x, before=node), before=node)
    below, left = (editor.call(aten.lt.Scalar, value, 0, before=node) for value in (y, x))
    turn = editor.call(aten.where.self, below, editor.call(aten.neg.default, whole, before=node), whole, before=node)
    turn = editor.call(aten.where.self, left, turn, zero, before=node)
    turned = editor.call(aten.add.Tensor, editor.call(aten.atan.default, ratio, before=node), turn, before=node)
    right_angle = editor.call(aten.mul.Tensor, editor.call(aten.sign.default, y, before=node), half, before=node)
    editor.swap(node, editor.call(aten.where.self, upright, right_angle, turned, before=node))


def _as_float(editor: Editor, node: Call, argument: Call) -> Call:
    dtype = node.meta["val"].dtype
    same = argument.meta["val"].dtype == dtype
    return argument if same else editor.call(aten._to_copy.default, argument, dtype=dtype, before=node)


def distances(editor: Editor) -> None:
    """Distances between rows, as sums of powers of differences: no exporter has the operator that PyTorch runs."""
    for node in editor.calls(aten._cdist_forward.default, aten.cdist.default):
        _distances(editor, node)


def _distances(editor: Editor, node: Call) -> None:
    left, right, p = with_defaults(node, 2, 2.0)[:3]
    rows = editor.call(aten.unsqueeze.default, left, -2, before=node)
    others = editor.call(aten.unsqueeze.default, right, -3, before=node)
    apart = editor.call(aten.abs.default, editor.call(aten.sub.Tensor, rows, others, before=node), before=node)
    if p == float("inf"):
        editor.swap(node, editor.call(aten.amax.default, apart, [-1], before=node))
    elif p == 0.0:
        some = editor.call(aten._to_copy.default, editor.call(aten.ne.Scalar, apart, 0, before=node),
                           dtype=torch.float32, before=node)  # fmt: skip
        editor.swap(node, editor.call(aten.sum.dim_IntList, some, [-1], before=node))
    else:
        powers = apart if p == 1.0 else editor.call(aten.pow.Tensor_Scalar, apart, p, before=node)
        total = editor.call(aten.sum.dim_IntList, powers, [-1], before=node)
        if p == 2.0:
            total = editor.call(aten.sqrt.default, total, before=node)
        elif p != 1.0:
            total = editor.call(aten.pow.Tensor_Scalar, total, 1.0 / p, before=node)
        editor.swap(node, total)


def _scatter_add(editor: Editor, node: Call) -> None:
    """A scatter into a part of the other axes becomes one into all of a narrower tensor, which converters have."""
    x, _, index, _ = node.args
    if is_static((*shape_of(x), *shape_of(index))) and _is_partial(node):
        expand(editor, node, scatter.scatter_add_in_part)


def _scatter_reduce(editor: Editor, node: Call) -> None:
    """What ONNX has no word for, a mean and one that leaves out what was there, by comparison."""
    x, _, index, _, reduce = node.args
    whole = bool(node.kwargs.get("include_self", True))
    if not shape_of(x) or not is_static((*shape_of(x), *shape_of(index))):
        return
    if reduce == "mean" or not whole or _is_partial(node):
        expand(editor, node, scatter.scatter_reduce)


def _is_partial(node: Call) -> bool:
    x, dim, index = node.args[:3]
    axis = dim % max(rank_of(x), 1)
    pairs = enumerate(zip(shape_of(x), shape_of(index), strict=True))
    return any(size != have for place, (have, size) in pairs if place != axis)


def _rename(target: Any) -> Callable[[Editor, Call], None]:
    def rule(editor: Editor, node: Call) -> None:
        node.target = target

    return rule


_RULES: dict[Any, Callable[[Editor, Call], None]] = {
    aten.add.Tensor: _factor,
    aten.sub.Tensor: _factor,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.addmm.default: _addmm,
    aten.atan2.default: _atan2,
    aten.arctan2.default: _atan2,
    aten.bilinear.default: _bilinear,
    aten.one_hot.default: _one_hot,
    aten.scatter_add.default: _scatter_add,
    aten.scatter_reduce.two: _scatter_reduce,
    aten.diff.default: _diff,
    aten.where.Scalar: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.bitwise_not.default: _logical_not,
    aten.bmm.default: _rename(aten.matmul.default),
    aten.mm.default: _rename(aten.matmul.default),
    aten.mv.default: _rename(aten.matmul.default),
    aten.dot.default: _rename(aten.matmul.default),
    aten.divide.Tensor: _rename(aten.div.Tensor),
    aten.multiply.Tensor: _rename(aten.mul.Tensor),
    aten.subtract.Tensor: _rename(aten.sub.Tensor),
    aten.true_divide.Tensor: _rename(aten.div.Tensor),
    aten.concat.default: _rename(aten.cat.default),
    aten.concatenate.default: _rename(aten.cat.default),
    aten.absolute.default: _rename(aten.abs.default),
    aten.special_expit.default: _rename(aten.sigmoid.default),
    **dict.fromkeys(_LOGICAL, _logical),
    **dict.fromkeys(_FILLED, _full),
}
