"""Rewrites that change no number: erase what only moves memory, write dims and indices as positive, plain reshapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from deploykit.capture.editor import Call, Editor, is_static, rank_of, shape_of, with_defaults

aten = torch.ops.aten

_IDENTITY = (
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.positive.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
)
"""Erased when shape and dtype stay the same (they copy or alias, or are random in training only)."""

_MAYBE_WHOLE = (aten.expand.default, aten.expand_as.default, aten.slice.Tensor, aten.pad.default)
"""Erased when they keep the shape. (A slice that keeps every element keeps their order: steps are positive.)"""

_CASTS = (
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
)

_RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view_as.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.reshape_as.default,
)

_TRANSPOSES = (aten.t.default, aten.numpy_T.default, aten.mT.default, aten.transpose.int, aten.permute.default)

_LIST_OPS = {
    "aten::chunk",
    "aten::split",
    "aten::split_with_sizes",
    "aten::tensor_split",
    "aten::unsafe_chunk",
    "aten::unsafe_split",
    "aten::unbind",
}

_DIM_ARGUMENTS = {"dim", "dims", "dim0", "dim1", "start_dim", "end_dim", "axis", "dimension", "dim2"}
_MORE_AXES = {"aten::unsqueeze", "aten::stack"}
_LAST = 2**63 - 1


def erase_identities(editor: Editor) -> None:
    """Erase calls that return their input: dropout, clone, contiguous, alias, casts to the same dtype."""
    for node in editor.calls():
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
            continue
        same_dtype = node.meta["val"].dtype == getattr(source.meta["val"], "dtype", None)
        if node.target in _IDENTITY and same_dtype and same_shape(node, source):
            editor.swap(node, source)
        elif node.target in _CASTS:
            if same_dtype:
                editor.swap(node, source)
            else:
                editor.retarget(node, aten._to_copy.default, source, dtype=node.meta["val"].dtype)
        elif node.target in _MAYBE_WHOLE and same_shape(node, source) and not _moves(node):
            editor.swap(node, source)


def _moves(node: Call) -> bool:
    """Whether a pad of equal shape shifts (one side grows, the other shrinks)."""
    return node.target is aten.pad.default and any(node.args[1])


def positive_dims(editor: Editor) -> None:
    """Count negative dims and indices from the front, and write open slice ends out (static sizes)."""
    for node in editor.calls():
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        tensor = _first_tensor(node)
        if tensor is None:
            continue
        schema = node.target._schema
        rank = rank_of(tensor) + (schema.name in _MORE_AXES)
        for index, argument in enumerate(schema.arguments):
            if argument.name in _DIM_ARGUMENTS:
                _rewrite(node, index, argument.name, lambda dim, rank=rank: _positive(dim, rank))
        if node.target is aten.select.int:
            size = shape_of(tensor)[node.args[1]]
            _rewrite(node, 2, "index", lambda i, size=size: _positive(i, size))
        elif node.target is aten.slice.Tensor:
            _close_slice(node, tensor)


def plain_slices(editor: Editor) -> None:
    """Ops that return a list of views (chunk, split, unbind) become one slice or select per result; narrow a slice."""
    for node in editor.calls():
        name = node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""
        if name in _LIST_OPS:
            _slice_results(editor, node)
        elif node.target is aten.narrow.default and is_static(node.args[2:]):
            source, dim, start, length = node.args
            editor.retarget(node, aten.slice.Tensor, source, dim, start, start + length)


def plain_reshapes(editor: Editor) -> None:
    """View, flatten, unflatten, squeeze -> reshape with sizes written out (-1 for the one dynamic size)."""
    for node in editor.calls(*_RESHAPES):
        source = node.args[0]
        if same_shape(node, source):
            editor.swap(node, source)
            continue
        sizes = shape_of(node)
        dynamic = sum(not isinstance(size, int) for size in sizes)
        if dynamic <= 1:
            plain = [size if isinstance(size, int) else -1 for size in sizes]
            editor.retarget(node, aten.reshape.default, source, plain)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            editor.retarget(node, aten.reshape.default, source, node.args[1])


def index_by_arange(editor: Editor) -> None:
    """x[rows[:, None], columns[None, :]] with every row and column in order is a reshape (masks are built so)."""
    for node in editor.calls(aten.index.Tensor):
        source, indices = node.args
        if len(indices) != rank_of(source) or not all(isinstance(i, fx.Node) for i in indices):
            continue
        axes = [_arange_axis(editor, i, size, rank_of(node)) for i, size in zip(indices, shape_of(source), strict=True)]
        placed = [axis for axis in axes if axis is not None and axis >= 0]
        sizes = [size if isinstance(size, int) else -1 for size in shape_of(node)]
        if None not in axes and placed == sorted(set(placed)) and sizes.count(-1) <= 1:
            whole = same_shape(node, source)
            editor.swap(node, source if whole else editor.call(aten.reshape.default, source, sizes, before=node))
    editor.sweep()


def _arange_axis(editor: Editor, index: Call, size: Any, rank: int) -> int | None:
    """The axis along which an index counts 0, 1, ..., size - 1; -1 where size is 1; None if it does not."""
    value = editor.value(index)
    if value is not None:
        counts = isinstance(size, int) and torch.equal(value.flatten(), torch.arange(size, dtype=value.dtype))
    else:
        plain = index
        while plain.target in (aten.unsqueeze.default, aten.reshape.default):
            plain = plain.args[0]
        counts = plain.target is aten.arange.default and same_size(shape_of(plain)[0], size)
    long = [axis for axis, have in enumerate(shape_of(index)) if not isinstance(have, int) or have != 1]
    if not counts or len(long) > 1:
        return None
    return long[0] + rank - rank_of(index) if long else -1


def plain_transposes(editor: Editor) -> None:
    """T, mT, t, transpose and permute -> permute; a permutation that moves nothing goes away, two become one."""
    for node in editor.calls(*_TRANSPOSES):
        source: Call = node.args[0]
        order = _order_of(node, rank_of(source))
        if source.target is aten.permute.default and len(source.users) == 1:
            source, first = source.args
            order = [first[axis] for axis in order]
        if order == sorted(order):
            editor.swap(node, source)
        else:
            editor.retarget(node, aten.permute.default, source, order)
    editor.sweep()


def same_shape(node: Call, source: Call) -> bool:
    """Whether two nodes hold tensors of equal shape, by what is known of it."""
    have, want = shape_of(node), shape_of(source)
    return len(have) == len(want) and all(map(same_size, have, want))


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal by what is known of them; asks no new guard of a dynamic size."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt) and bool(a.node.expr == b.node.expr)


def _first_tensor(node: Call) -> Call | None:
    for value in node.args[:1]:
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(first, fx.Node) and isinstance(first.meta.get("val"), Tensor):
            return first
    return None


def _rewrite(node: Call, index: int, name: str, rule: Any) -> None:
    """Apply a rule to one argument (an int or a list of ints), wherever it stands."""
    if index < len(node.args):
        node.update_arg(index, _each(node.args[index], rule))
    elif name in node.kwargs:
        node.update_kwarg(name, _each(node.kwargs[name], rule))


def _each(value: Any, rule: Any) -> Any:
    if isinstance(value, list | tuple):
        return [rule(item) for item in value]
    return rule(value)


def _positive(index: Any, size: Any) -> Any:
    plain = isinstance(index, int) and not isinstance(index, bool) and isinstance(size, int)
    return index + size if plain and index < 0 else index


def _close_slice(node: Call, tensor: Call) -> None:
    """Write start and end of a slice as counts from the front, clipped to the size."""
    _, dim, start, end, step = with_defaults(node, 1, 0, None, None, 1)
    size = shape_of(tensor)[dim]
    start = 0 if start is None else start
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int | None):
        start = min(max(_positive(start, size), 0), size)
        end = size if end is None else min(max(_positive(end, size), start), size)
    else:
        end = _LAST if end is None else end
    node.args, node.kwargs = (node.args[0], dim, start, end, *((step,) if step != 1 else ())), {}


def _slice_results(editor: Editor, node: Call) -> None:
    """Replace every getitem of a list op by a slice or select of the source."""
    source, dim = node.args[0], _list_dim(node)
    results = node.meta["val"]
    sizes = [result.shape[dim] if rank_of(source) == result.dim() else None for result in results]
    if not is_static(size for size in sizes if size is not None):
        return
    for user in list(node.users):
        index = user.args[1] % len(results)
        if sizes[index] is None:
            new = editor.call(aten.select.int, source, dim, index, before=user)
        else:
            start = sum(size for size in sizes[:index] if size is not None)
            new = editor.call(aten.slice.Tensor, source, dim, start, start + sizes[index], before=user)
        editor.swap(user, new)
    editor.graph.erase_node(node)


def _list_dim(node: Call) -> int:
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.name == "dim":
            dim = node.args[index] if index < len(node.args) else node.kwargs.get("dim", argument.default_value)
            return int(dim) % rank_of(node.args[0])
    return 0


def _order_of(node: Call, rank: int) -> list[int]:
    """The permutation that a transposing call applies."""
    order = list(range(rank))
    if node.target is aten.permute.default:
        return [axis % rank for axis in node.args[1]]
    if node.target is aten.numpy_T.default:
        return order[::-1]
    if rank < 2:
        return order
    one, two = node.args[1:3] if node.target is aten.transpose.int else (rank - 2, rank - 1)
    order[one % rank], order[two % rank] = order[two % rank], order[one % rank]
    return order
