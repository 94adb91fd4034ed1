"""Complex numbers -> pairs of real tensors, once for every target: few runtimes have any, and none has all of them.

Rules say what becomes of operators that mix the two parts; what only moves, joins or sums values is done to each part.
What is in neither table is refused with its place, as are inputs and outputs that are complex: no runtime feeds them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.capture.complex_pairs import REAL_OF, UNKNOWN, Pair, Writer, each, leaves, real_part
from deploykit.capture.complex_rules import RULES
from deploykit.capture.editor import Call, Editor, is_static, shape_of
from deploykit.contract.errors import CaptureError

aten = torch.ops.aten
Rule = Callable[..., Any]


def lower_complex(editor: Editor) -> None:
    """Replace every complex value of the graph.

    Raises:
        CaptureError: an input or output is complex, or an operator has no rule; names operator, module and line.
    """
    _refuse_at_the_border(editor)
    pairs: dict[Call, Pair] = {}
    stored: dict[bytes, Call] = {}
    for node in list(editor.graph.nodes):
        if node.op == "get_attr" and _is_complex(node):
            pairs[node] = _split_constant(editor, node)
        elif node.op == "call_function" and _concerns(node, pairs):
            _lower(Writer(editor, node, stored), pairs)
    for node in reversed(pairs):
        editor.graph.erase_node(node)
    editor.sweep()


def _refuse_at_the_border(editor: Editor) -> None:
    for node in editor.graph.nodes:
        if node.op == "placeholder" and _is_complex(node):
            raise CaptureError(
                f"input {str(node.target)!r} is complex: no runtime is fed with complex numbers",
                hint="take real and imaginary part as one real tensor (..., 2), and torch.view_as_complex in forward",
            )
        if node.op == "output" and any(_is_complex(result) for result in node.all_input_nodes):
            raise CaptureError(
                "the model returns complex numbers: no runtime gives them",
                hint="return torch.view_as_real(y), or its magnitude and angle",
            )


def _is_complex(node: Call) -> bool:
    values = node.meta.get("val")
    parts = values if isinstance(values, tuple | list) else (values,)
    return any(isinstance(part, Tensor) and part.is_complex() for part in parts)


def _concerns(node: Call, pairs: dict[Call, Pair]) -> bool:
    alone = isinstance(node.target, torch._ops.OpOverload) and _name(node) in _ALSO_REAL
    return alone or _is_complex(node) or any(source in pairs for source in node.all_input_nodes)


def _name(node: Call) -> str:
    return str(node.target._schema.name.split("::")[1])


def _split_constant(editor: Editor, node: Call) -> Pair:
    parts = ((_real, "real"), (_imaginary, "imag"))
    return Pair(*(editor.derived(f"{node.target}.{name}", part, node) for part, name in parts))


def _real(value: Tensor) -> Tensor:
    return value.resolve_conj().real.contiguous()


def _imaginary(value: Tensor) -> Tensor:
    return value.resolve_conj().imag.contiguous()


def _lower(writer: Writer, pairs: dict[Call, Pair]) -> None:
    """Write one operator on pairs; a real result takes the node's place."""
    node = writer.node
    known: Callable[[fx.Node], Any] = lambda n: pairs.get(n, n)  # noqa: E731
    args, kwargs = fx.map_arg((node.args, node.kwargs), known)
    name = "getitem" if node.target is operator.getitem else _name(node)
    rule = _rule_of(str(node.target), name)
    if rule is not None:
        result = rule(writer, *args, **kwargs)
    elif name in _PARTWISE:
        result = _partwise(writer, args, kwargs)
    else:
        raise writer.refuse("deploykit has no real form of an operator on complex numbers", UNKNOWN)
    if isinstance(result, Pair):
        pairs[node] = _whole(writer, result)
    else:
        writer.editor.swap(node, result)


def _rule_of(overload: str, name: str) -> Rule | None:
    return RULES.get(overload.removeprefix("aten."), RULES.get(name))


def _whole(w: Writer, result: Pair) -> Pair:
    """Parts of the shape of the result: a real operand may have been the larger one."""
    if not isinstance(w.val, Tensor):
        return result

    def grown(part: Any, other: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, int | float):
            return w(aten.full_like.default, other, part)
        static = is_static((*shape_of(part), *w.val.shape))
        fits = not static or shape_of(part) == tuple(w.val.shape)
        return part if fits else w(aten.expand.default, part, list(w.val.shape))

    re = grown(result.re, result.im)
    return Pair(re, grown(result.im, re))


def _partwise(w: Writer, args: Any, kwargs: Any) -> Pair:
    """The operator on both parts: real operands have an imaginary part of zeros."""
    target = w.node.target
    kwargs = {
        key: REAL_OF.get(value, value) if isinstance(value, torch.dtype) else value for key, value in kwargs.items()
    }
    real = w(target, *each(args, real_part), **each(kwargs, real_part)) if target is not operator.getitem else None
    if target is operator.getitem:
        return Pair(*(None if part is None else w(target, part, args[1]) for part in (args[0].re, args[0].im)))
    if not any(isinstance(leaf, Pair) and leaf.im is not None for leaf in leaves((args, kwargs))):
        return Pair(real, None)

    def imaginary(leaf: Any) -> Any:
        if isinstance(leaf, Pair):
            return w.zeros(leaf.re) if leaf.im is None else leaf.im
        if isinstance(leaf, fx.Node) and leaf.meta["val"].is_floating_point():
            return w.zeros(leaf)
        return leaf.imag if isinstance(leaf, complex) else 0.0 if isinstance(leaf, float) else leaf

    return Pair(real, w(target, *each(args, imaginary), **each(kwargs, imaginary)))


_PARTWISE = frozenset(
    """
    getitem view _unsafe_view reshape reshape_as view_as flatten unflatten squeeze unsqueeze expand expand_as permute
    transpose t mT numpy_T movedim swapaxes swapdims slice select narrow chunk split split_with_sizes tensor_split
    unbind flip fliplr flipud roll rot90 repeat tile repeat_interleave cat concat concatenate stack hstack vstack dstack
    column_stack index index_select gather take take_along_dim embedding masked_select unfold as_strided diagonal diag
    diag_embed diagonal_scatter tril triu trace slice_scatter select_scatter scatter scatter_add index_add index_copy
    index_put sum mean nansum cumsum diff neg negative clone contiguous alias detach detach_ lift_fresh_copy lift_fresh
    positive dropout constant_pad_nd pad where copy broadcast_to ravel atleast_1d atleast_2d atleast_3d
    fft_fftshift fft_ifftshift
    """.split()
)
"""Operators that are done to each part by itself."""

_ALSO_REAL = frozenset({"angle", "stft", "fft_fftshift", "fft_ifftshift"})
"""Lowered also where no value is complex: `stft` with return_complex=False, the angle of real numbers."""
