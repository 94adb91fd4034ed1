"""Fold what depends on no input's value but on the batch size: masks and positions that are equal for every sample.

Such a subgraph is run for three sizes of its one symbol. If every result is the first one broadcast, the subgraph is a
constant; an op that broadcasts anyway takes it as it is, any other through an expand.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.capture.derivation import of_call
from deploykit.capture.editor import Call, Editor, shape_of
from deploykit.capture.fold import LARGEST_CONSTANT, laid_out
from deploykit.capture.rewrite_views import same_size

aten = torch.ops.aten

_SIZES = (1, 2, 3)
_CHEAP = (aten.full.default, aten.expand.default)
"""Not worth a fold on their own: as small as the expand that would take their place."""


def fold_batch_constants(editor: Editor) -> None:
    """Replace subgraphs that are equal for every sample by constants (dynamic shapes only)."""
    symbols = _symbols_of(editor)
    sizes = [n for n, found in symbols.items() if n.target is aten.sym_size.int and found]
    if not sizes:
        return
    for node in [n for n in symbols if _is_frontier(n, symbols)]:
        used = symbols[node]
        value = _broadcast_value(editor, node, symbols) if len(used) == 1 else None
        if value is not None:
            _place(editor, node, value, _derivation(editor, node, symbols[node]))
    editor.sweep()


def _symbols_of(editor: Editor) -> dict[Call, frozenset[Any]]:
    """The calls that read no input's value, each with the symbols its result depends on."""
    found: dict[Call, frozenset[Any]] = {}
    for node in editor.graph.nodes:
        if node.op == "get_attr":
            found[node] = frozenset()
        elif node.op == "call_function" and node.target is aten.sym_size.int:
            found[node] = _free_symbols(node.meta.get("val"))
        elif node.op == "call_function" and _is_pure(node) and all(n in found for n in node.all_input_nodes):
            found[node] = frozenset().union(*(found[n] for n in node.all_input_nodes))
    return found


def _is_pure(node: Call) -> bool:
    if node.target is operator.getitem:
        return True
    known = isinstance(node.target, torch._ops.OpOverload)
    if not known:
        return getattr(node.target, "__module__", "") in ("_operator", "torch")  # arithmetic of sizes
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _free_symbols(val: Any) -> frozenset[Any]:
    return frozenset(val.node.expr.free_symbols) if isinstance(val, torch.SymInt) else frozenset()


def _is_frontier(node: Call, symbols: dict[Call, frozenset[Any]]) -> bool:
    """A tensor that depends on a symbol, is read by a call that depends on an input, and is worth folding."""
    if node.op != "call_function" or not symbols[node] or not isinstance(node.meta.get("val"), Tensor):
        return False
    worth = node.target not in _CHEAP or any(
        n.op == "call_function" and n.target is not aten.sym_size.int for n in node.all_input_nodes
    )
    return worth and any(user not in symbols for user in node.users)


def _broadcast_value(editor: Editor, node: Call, symbols: dict[Call, frozenset[Any]]) -> Tensor | None:
    """The value for size 1 when the values for other sizes are its broadcast; else None."""
    needed = _ancestors(node)
    results = [_evaluate(editor, node, needed, symbols[node], size) for size in _SIZES]
    first = results[0]
    if first is None or first.numel() > LARGEST_CONSTANT:
        return None
    for other in results[1:]:
        if other is None or other.dim() != first.dim():
            return None
        fits = all(have in (1, want) for have, want in zip(first.shape, other.shape, strict=True))
        if not fits or not torch.equal(other, first.expand(other.shape)):
            return None
    return first


def _ancestors(node: Call) -> list[Call]:
    seen: set[Call] = set()
    queue = [node]
    while queue:
        current = queue.pop()
        if current not in seen:
            seen.add(current)
            if current.target is not aten.sym_size.int:
                queue.extend(current.all_input_nodes)
    return [n for n in node.graph.nodes if n in seen]


def _evaluate(editor: Editor, node: Call, needed: list[Call], symbols: frozenset[Any], size: int) -> Tensor | None:
    env: dict[Call, Any] = {}
    values = dict.fromkeys(symbols, size)
    for each in needed:
        if each.op == "get_attr":
            env[each] = editor.value(each)
        elif each.target is aten.sym_size.int:
            env[each] = int(each.meta["val"].node.expr.subs(values))
        else:
            args, kwargs = fx.map_arg((each.args, each.kwargs), lambda n: env[n])
            try:
                env[each] = each.target(*args, **kwargs)
            except (RuntimeError, IndexError):
                return None  # a size that this subgraph does not take
    result = env[node]
    return result.detach().clone(memory_format=torch.contiguous_format) if isinstance(result, Tensor) else None


def _derivation(editor: Editor, node: Call, symbols: frozenset[Any]) -> Any:
    """How the value for the first size follows from the model's tensors."""
    known: dict[Call, Any] = {}
    for each in _ancestors(node):
        if each.op == "get_attr":
            known[each] = editor.derivation(each)
        elif each.target is aten.sym_size.int:
            known[each] = int(each.meta["val"].node.expr.subs(dict.fromkeys(symbols, _SIZES[0])))
        else:
            known[each] = of_call(each, known) or _literal(each, known)
    return laid_out(known[node])


def _literal(node: Call, known: dict[Call, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
    return node.target(*args, **kwargs)


def _place(editor: Editor, node: Call, value: Tensor, derivation: Any) -> None:
    """Give the constant to every reader; through an expand where the reader's result would lose its shape."""
    constant = editor.constant(f"constant_{node.name}", value, derivation)
    for user in list(node.users):
        if not _broadcasts(editor, user, node, constant):
            sizes = [s if isinstance(s, int) else _size_node(editor, s, node) for s in shape_of(node)]
            user.replace_input_with(node, editor.call(aten.expand.default, constant, sizes, before=node))
        else:
            user.replace_input_with(node, constant)


def _broadcasts(editor: Editor, user: Call, node: Call, constant: Call) -> bool:
    """Whether a pointwise op gives the same shape with the unexpanded constant."""
    if not isinstance(user.target, torch._ops.OpOverload) or torch.Tag.pointwise not in user.target.tags:
        return False
    args, kwargs = fx.map_arg((user.args, user.kwargs), lambda n: constant if n is node else n)
    shape = editor.infer(user.target, args, kwargs).shape
    want = shape_of(user)
    return len(shape) == len(want) and all(map(same_size, shape, want))


def _size_node(editor: Editor, size: Any, before: Call) -> Call:
    """A node that holds a symbolic size: one that exists upstream, or the axis of an input that has it."""
    for each in editor.graph.nodes:
        if each.op == "placeholder":
            for axis, have in enumerate(shape_of(each)):
                if same_size(have, size):
                    return editor.call(aten.sym_size.int, each, axis, before=before)
    raise AssertionError(f"no input has an axis of size {size}")
