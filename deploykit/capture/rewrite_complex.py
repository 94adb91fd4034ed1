"""Complex arithmetic as arithmetic on pairs of real tensors, where all of a model's complex part can be written so.

Rotary embeddings written with `view_as_complex` are the common case. Runtimes have no complex type, so that a pair is
what every target can lower, calibrate and quantize. A model with a complex operator that is not in the tables here (a
Fourier transform), or with complex inputs or outputs, keeps its complex part as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.capture.editor import Call, Editor, rank_of

aten = torch.ops.aten

Pair = tuple[Any, Any]
"""Real and imaginary part: a node or a number each; the imaginary part of a real operand is the number 0."""

# Applied to both parts: what only moves elements, sums them, or changes their sign.
_BOTH = frozenset(
    {
        *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints),
        *(aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.t.default, aten.movedim.int),
        *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.select.int),
        *(aten.slice.Tensor, aten.narrow.default, aten.expand.default, aten.repeat.default, aten.flip.default),
        *(aten.roll.default, aten.index_select.default, aten.alias.default, aten.clone.default, aten.neg.default),
        *(aten.contiguous.default, aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim),
        *(aten.cat.default, aten.stack.default, aten.resolve_conj.default, aten.resolve_neg.default),
    }
)


def complex_pairs(editor: Editor) -> None:
    """Rewrite the complex part of a graph, or leave all of it."""
    nodes = [node for node in editor.graph.nodes if _is_complex(node)]
    users = [user for node in nodes for user in node.users if not _is_complex(user)]
    written = all(node.op == "get_attr" or node.target in _BOTH or node.target in _RULES for node in nodes)
    if not nodes or not written or not all(user.target in _SINKS for user in users):
        return
    pairs: dict[fx.Node, Pair] = {}
    for node in list(editor.graph.nodes):
        if _is_complex(node):
            pairs[node] = _pair(editor, node, pairs)
        elif node.op == "call_function" and any(source in pairs for source in node.all_input_nodes):
            editor.swap(node, _SINKS[node.target](editor, node, pairs[node.args[0]]))
    editor.sweep()


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_complex()


def _pair(editor: Editor, node: Call, pairs: Mapping[fx.Node, Pair]) -> Pair:
    value = editor.value(node)
    if value is not None:
        value, name = value.resolve_conj(), str(node.target).replace(".", "_")
        parts = (value.real.contiguous(), value.imag.contiguous())
        return editor.constant(f"{name}_real", parts[0]), editor.constant(f"{name}_imag", parts[1])
    if node.target in _BOTH:
        return _part(editor, node, pairs, 0), _part(editor, node, pairs, 1)
    return _RULES[node.target](editor, node, [_operand(each, pairs) for each in node.args])


def _part(editor: Editor, node: Call, pairs: Mapping[fx.Node, Pair], index: int) -> Call:
    args = fx.map_arg(node.args, lambda each: pairs[each][index] if each in pairs else each)
    return editor.call(node.target, *args, before=node, **node.kwargs)


def _operand(value: Any, pairs: Mapping[fx.Node, Pair]) -> Pair:
    if isinstance(value, complex):
        return value.real, value.imag
    return pairs.get(value, (value, 0)) if isinstance(value, fx.Node) else (value, 0)


# Arithmetic on what may be a node or a number.


def _times(editor: Editor, at: Call, a: Any, b: Any, target: Any = aten.mul.Tensor) -> Any:
    if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
        return a * b
    if any(not isinstance(each, fx.Node) and each == 0 for each in (a, b)):
        return 0
    a, b = (a, b) if isinstance(a, fx.Node) else (b, a)
    return editor.call(target, a, b, before=at)


def _plus(editor: Editor, at: Call, a: Any, b: Any, sign: int = 1) -> Any:
    if not isinstance(b, fx.Node) and b == 0:
        return a
    if not isinstance(a, fx.Node):
        b = b if sign == 1 else _negated(editor, at, b)
        return b if a == 0 else a + b if not isinstance(b, fx.Node) else editor.call(aten.add.Tensor, b, a, before=at)
    return editor.call(aten.add.Tensor if sign == 1 else aten.sub.Tensor, a, b, before=at)


def _negated(editor: Editor, at: Call, a: Any) -> Any:
    return editor.call(aten.neg.default, a, before=at) if isinstance(a, fx.Node) else -a


def _product(editor: Editor, node: Call, a: Pair, b: Pair, target: Any = aten.mul.Tensor) -> Pair:
    """(a0 b0 - a1 b1, a0 b1 + a1 b0)."""

    def times(x: Any, y: Any) -> Any:
        return _times(editor, node, x, y, target)

    real = _plus(editor, node, times(a[0], b[0]), times(a[1], b[1]), -1)
    return _filled(editor, node, (real, _plus(editor, node, times(a[0], b[1]), times(a[1], b[0]))))


def _matrices(editor: Editor, node: Call, operands: list[Pair]) -> Pair:
    return _product(editor, node, operands[0], operands[1], node.target)


def _filled(editor: Editor, node: Call, pair: Pair) -> Pair:
    """The pair with tensors of the result's shape in place of numbers and of what is still to be spread."""
    other = next(part for part in pair if isinstance(part, fx.Node))
    shape = list(node.meta["val"].shape)

    def filled(part: Any) -> Call:
        if not isinstance(part, fx.Node):
            part = editor.call(aten.full_like.default, other, part, before=node)
        if list(part.meta["val"].shape) == shape:
            return part
        return editor.call(aten.expand.default, part, shape, before=node)

    return filled(pair[0]), filled(pair[1])


def _sum_of(sign: int) -> Callable[..., Pair]:
    def rule(editor: Editor, node: Call, operands: list[Pair]) -> Pair:
        a, b = operands[:2]
        alpha = node.kwargs.get("alpha", 1)
        b = b if alpha == 1 else (_times(editor, node, b[0], alpha), _times(editor, node, b[1], alpha))
        parts = (_plus(editor, node, a[0], b[0], sign), _plus(editor, node, a[1], b[1], sign))
        return _filled(editor, node, parts)

    return rule


def _quotient(editor: Editor, node: Call, operands: list[Pair]) -> Pair:
    """a / b = a conj(b) / (b0^2 + b1^2)."""
    a, b = operands[:2]
    if not isinstance(b[1], fx.Node) and b[1] == 0:
        parts = [editor.call(aten.div.Tensor, x, b[0], before=node) if isinstance(x, fx.Node) else x for x in a]
        return _filled(editor, node, (parts[0], parts[1]))
    above = _product(editor, node, a, (b[0], _negated(editor, node, b[1])))
    below = _power(editor, node, b)
    return _filled(
        editor,
        node,
        (
            editor.call(aten.div.Tensor, above[0], below, before=node),
            editor.call(aten.div.Tensor, above[1], below, before=node),
        ),
    )


def _power(editor: Editor, node: Call, a: Pair) -> Any:
    return _plus(editor, node, _times(editor, node, a[0], a[0]), _times(editor, node, a[1], a[1]))


def _turned(editor: Editor, node: Call, size: Any, angle: Any) -> Pair:
    cosine, sine = (editor.call(each, angle, before=node) for each in (aten.cos.default, aten.sin.default))
    return _filled(editor, node, (_times(editor, node, size, cosine), _times(editor, node, size, sine)))


def _exponential(editor: Editor, node: Call, operands: list[Pair]) -> Pair:
    real, imaginary = operands[0]
    return _turned(editor, node, editor.call(aten.exp.default, real, before=node), imaginary)


def _joined(editor: Editor, node: Call, pair: Pair) -> Call:
    axis = rank_of(pair[0])
    parts = [editor.call(aten.unsqueeze.default, part, axis, before=node) for part in pair]
    return editor.call(aten.cat.default, parts, axis, before=node)


def _halves(editor: Editor, node: Call, operands: list[Pair]) -> Pair:
    source = operands[0][0]
    axis = rank_of(source) - 1
    real, imaginary = (editor.call(aten.select.int, source, axis, index, before=node) for index in (0, 1))
    return real, imaginary


def _conjugate(editor: Editor, node: Call, operands: list[Pair]) -> Pair:
    return operands[0][0], _negated(editor, node, operands[0][1])


def _size(editor: Editor, node: Call, pair: Pair) -> Call:
    return editor.call(aten.sqrt.default, _power(editor, node, pair), before=node)


_RULES: Mapping[Any, Callable[[Editor, Call, list[Pair]], Pair]] = {
    aten.view_as_complex.default: _halves,
    aten.complex.default: lambda editor, node, of: _filled(editor, node, (of[0][0], of[1][0])),
    aten.polar.default: lambda editor, node, of: _turned(editor, node, of[0][0], of[1][0]),
    aten.add.Tensor: _sum_of(1),
    aten.sub.Tensor: _sum_of(-1),
    aten.mul.Tensor: lambda editor, node, of: _product(editor, node, of[0], of[1]),
    aten.div.Tensor: _quotient,
    aten.exp.default: _exponential,
    aten.conj.default: _conjugate,
    aten._conj.default: _conjugate,
    aten.conj_physical.default: _conjugate,
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default), _matrices),
}
"""What gives a complex tensor."""

_SINKS: Mapping[Any, Callable[[Editor, Call, Pair], Call]] = {
    aten.view_as_real.default: _joined,
    aten.real.default: lambda editor, node, pair: pair[0],
    aten.imag.default: lambda editor, node, pair: pair[1],
    aten.abs.default: _size,
    aten.angle.default: lambda editor, node, pair: editor.call(aten.atan2.default, pair[1], pair[0], before=node),
}
"""What reads a complex tensor and gives a real one."""
