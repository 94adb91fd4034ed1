"""Complex numbers -> pairs of real tensors, once for every target: few runtimes have any, and none has all of them.

Rules say what becomes of operators that mix the two parts; what only moves, joins or sums values is done to each part.
What is in neither table is refused with its place, as are inputs and outputs that are complex: no runtime feeds them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.capture import fourier, short_time
from deploykit.capture.complex_pairs import REAL_OF, Pair, Writer
from deploykit.capture.editor import Call, Editor, is_static, rank_of, shape_of
from deploykit.errors import CaptureError

aten = torch.ops.aten
Rule = Callable[..., Any]

_HINT = "write that part with real tensors (torch.view_as_real), or keep it out of the exported model"


def lower_complex(editor: Editor) -> None:
    """Replace every complex value of the graph.

    Raises:
        CaptureError: an input or output is complex, or an operator has no rule; names operator, module and line.
    """
    _refuse_at_the_border(editor)
    pairs: dict[Call, Pair] = {}
    for node in list(editor.graph.nodes):
        if node.op == "get_attr" and _is_complex(node):
            pairs[node] = _split_constant(editor, node)
        elif node.op == "call_function" and _concerns(node, pairs):
            _lower(editor, node, pairs)
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
    value = editor.value(node)
    assert value is not None
    value = value.detach().resolve_conj()
    parts = ((value.real, "real"), (value.imag, "imag"))
    return Pair(*(editor.constant(f"{node.target}.{name}", part.contiguous()) for part, name in parts))


def _lower(editor: Editor, node: Call, pairs: dict[Call, Pair]) -> None:
    """Write one operator on pairs; a real result takes the node's place."""
    writer = Writer(editor, node)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: pairs.get(n, n))
    name = "getitem" if node.target is operator.getitem else _name(node)
    rule = _rule_of(str(node.target), name)
    if rule is not None:
        result = rule(writer, *args, **kwargs)
    elif name in _PARTWISE:
        result = _partwise(writer, args, kwargs)
    else:
        raise writer.refuse("deploykit has no real form of an operator on complex numbers", _HINT)
    if isinstance(result, Pair):
        pairs[node] = _whole(writer, result)
    else:
        editor.swap(node, result)


def _rule_of(overload: str, name: str) -> Rule | None:
    return _RULES.get(overload.removeprefix("aten."), _RULES.get(name))


def _whole(w: Writer, result: Pair) -> Pair:
    """Parts of the shape of the result: a real operand may have been the larger one."""
    if not isinstance(w.val, Tensor):
        return result

    def grown(part: Any) -> Any:
        if part is None or isinstance(part, int | float):
            return part
        same = (
            rank_of(part) == w.val.dim() and all(a == b for a, b in zip(shape_of(part), w.val.shape, strict=True))
            if is_static((*shape_of(part), *w.val.shape))
            else True
        )
        return part if same else w(aten.expand.default, part, list(w.val.shape))

    return Pair(grown(result.re), grown(result.im))


def _partwise(w: Writer, args: Any, kwargs: Any) -> Pair:
    """The operator on both parts: real operands have an imaginary part of zeros."""
    target = w.node.target
    kwargs = {
        key: REAL_OF.get(value, value) if isinstance(value, torch.dtype) else value for key, value in kwargs.items()
    }
    real = w(target, *_each(args, _real_part), **_each(kwargs, _real_part)) if target is not operator.getitem else None
    if target is operator.getitem:
        return Pair(*(None if part is None else w(target, part, args[1]) for part in (args[0].re, args[0].im)))
    if not any(isinstance(leaf, Pair) and leaf.im is not None for leaf in _leaves((args, kwargs))):
        return Pair(real, None)

    def imaginary(leaf: Any) -> Any:
        if isinstance(leaf, Pair):
            return w.zeros(leaf.re) if leaf.im is None else leaf.im
        if isinstance(leaf, fx.Node) and leaf.meta["val"].is_floating_point():
            return w.zeros(leaf)
        return leaf.imag if isinstance(leaf, complex) else 0.0 if isinstance(leaf, float) else leaf

    return Pair(real, w(target, *_each(args, imaginary), **_each(kwargs, imaginary)))


def _real_part(leaf: Any) -> Any:
    return leaf.re if isinstance(leaf, Pair) else leaf.real if isinstance(leaf, complex) else leaf


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change every leaf of nested arguments."""
    if isinstance(value, list | tuple):
        return [_each(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    return change(value)


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    _each(value, found.append)
    return found


# Making pairs, and real tensors of them.


def _complex(w: Writer, re: Call, im: Call) -> Pair:
    return Pair(re, im)


def _polar(w: Writer, radius: Call, angle: Call) -> Pair:
    return Pair(w.mul(radius, w(aten.cos.default, angle)), w.mul(radius, w(aten.sin.default, angle)))


def _view_as_complex(w: Writer, x: Call) -> Pair:
    axis = rank_of(x) - 1
    return Pair(*(w(aten.select.int, x, axis, part) for part in (0, 1)))


def _view_as_real(w: Writer, x: Pair) -> Call:
    re, im = w.tensors(x)
    return w(aten.stack.default, [re, im], rank_of(re))


def _real(w: Writer, x: Any) -> Call:
    return w.pair(x).re


def _imag(w: Writer, x: Pair) -> Call:
    return w.tensors(x)[1]


def _abs(w: Writer, x: Pair) -> Call:
    return w(aten.abs.default, x.re) if x.im is None else w(aten.sqrt.default, w.squared(x))


def _angle(w: Writer, x: Any) -> Call:
    """Of a real number 0 or pi, as PyTorch has it for -0.0 too."""
    value = w.pair(x)
    if value.im is not None:
        return w(aten.atan2.default, value.im, value.re)
    negative = w(aten._to_copy.default, w(aten.lt.Scalar, value.re, 0), dtype=w.val.dtype)
    return w(aten.mul.Tensor, negative, math.pi)


def _cast(w: Writer, x: Any, *args: Any, **kwargs: Any) -> Any:
    value, dtype = w.pair(x), REAL_OF.get(w.val.dtype, w.val.dtype)

    def to(part: Any) -> Any:
        same = part is None or part.meta["val"].dtype == dtype
        return part if same else w(aten._to_copy.default, part, dtype=dtype)

    return Pair(to(value.re), to(value.im)) if w.val.is_complex() else to(value.re)


def _filled(w: Writer, *args: Any, **kwargs: Any) -> Pair:
    """Tensors of one value: the value's parts, in the real dtype."""
    kwargs = {**kwargs, "dtype": REAL_OF[w.val.dtype]}
    real = w(w.node.target, *_each(args, _real_part), **kwargs)
    has = any(isinstance(leaf, complex) and leaf.imag for leaf in _leaves(args))
    imag = _each(args, lambda leaf: leaf.imag if isinstance(leaf, complex) else _real_part(leaf))
    return Pair(real, w(w.node.target, *imag, **kwargs) if has else None)


# Arithmetic.


def _add(w: Writer, a: Any, b: Any, *, alpha: Any = 1) -> Pair:
    one, two = w.pair(a), w.times(w.pair(b), w.pair(alpha))
    return Pair(w.add(one.re, two.re), w.add(one.im, two.im))


def _sub(w: Writer, a: Any, b: Any, *, alpha: Any = 1) -> Pair:
    one, two = w.pair(a), w.times(w.pair(b), w.pair(alpha))
    return Pair(w.sub(one.re, two.re), w.sub(one.im, two.im))


def _rsub(w: Writer, a: Any, b: Any, alpha: Any = 1) -> Pair:
    return _sub(w, b, a, alpha=alpha)


def _mul(w: Writer, a: Any, b: Any) -> Pair:
    return w.times(w.pair(a), w.pair(b))


def _div(w: Writer, a: Any, b: Any) -> Pair:
    one, two = w.pair(a), w.pair(b)
    if isinstance(two.re, int | float):
        size = two.re**2 + (two.im or 0.0) ** 2
        return w.times(one, Pair(two.re / size, -two.im / size if two.im else None))
    if two.im is None:
        return Pair(*(None if p is None else w(aten.div.Tensor, _as_tensor(w, p), two.re) for p in (one.re, one.im)))
    product, size = w.times(one, w.conj(two)), w.squared(two)
    return Pair(*(None if p is None else w(aten.div.Tensor, p, size) for p in (product.re, product.im)))


def _as_tensor(w: Writer, part: Any) -> Any:
    return w.constant(torch.tensor(float(part))) if isinstance(part, int | float) else part


def _power(w: Writer, x: Pair, exponent: Any) -> Pair:
    """Small whole exponents by products; others through the logarithm."""
    if isinstance(exponent, int | float) and exponent == int(exponent) and 0 < abs(exponent) <= 8:
        result = x
        for _ in range(abs(int(exponent)) - 1):
            result = w.times(result, x)
        return result if exponent > 0 else _div(w, 1.0, result)
    if not isinstance(exponent, int | float):
        raise w.refuse("a complex power whose exponent is a tensor", _HINT)
    radius = w(aten.pow.Tensor_Scalar, _abs(w, x), float(exponent))
    return _polar(w, radius, w(aten.mul.Tensor, _angle(w, x), float(exponent)))


def _exp(w: Writer, x: Pair) -> Pair:
    return Pair(w(aten.exp.default, x.re), None) if x.im is None else _polar(w, w(aten.exp.default, x.re), x.im)


def _log(w: Writer, x: Pair) -> Pair:
    return Pair(w(aten.log.default, _abs(w, x)), _angle(w, x))


def _sqrt(w: Writer, x: Pair) -> Pair:
    """sqrt((|z| + re) / 2) + i sign(im) sqrt((|z| - re) / 2), the root with a real part that is not negative."""
    size = _abs(w, x)
    halves = (w(aten.mul.Tensor, w.add(size, x.re), 0.5), w(aten.mul.Tensor, w.sub(size, x.re), 0.5))
    re, im = (w(aten.sqrt.default, w(aten.clamp_min.default, half, 0.0)) for half in halves)
    if x.im is None:
        return Pair(re, im)
    below = w(aten._to_copy.default, w(aten.lt.Scalar, x.im, 0), dtype=re.meta["val"].dtype)
    return Pair(re, w.mul(im, w.sub(1.0, w.mul(below, 2.0))))


def _sgn(w: Writer, x: Pair) -> Pair:
    size = _abs(w, x)
    nothing = w(aten._to_copy.default, w(aten.eq.Scalar, size, 0), dtype=size.meta["val"].dtype)
    return _div(w, x, w.add(size, nothing))


def _equal(w: Writer, a: Any, b: Any) -> Call:
    one, two = w.pair(a), w.pair(b)
    both = [w(aten.eq.Tensor, x, y) for x, y in zip(w.tensors(one), _numbers(w, two), strict=True)]
    return w(aten.logical_and.default, *both)


def _not_equal(w: Writer, a: Any, b: Any) -> Call:
    return w(aten.logical_not.default, _equal(w, a, b))


def _numbers(w: Writer, value: Pair) -> tuple[Any, Any]:
    plain = isinstance(value.re, int | float)
    return (_as_tensor(w, value.re), _as_tensor(w, value.im or 0.0)) if plain else w.tensors(value)


def _masked_fill(w: Writer, x: Pair, mask: Call, value: Any) -> Pair:
    re, im = w.tensors(x)
    number = w.pair(value)
    fill = [part if part is not None else 0.0 for part in (number.re, number.im)]
    if not all(isinstance(part, int | float) for part in fill):
        raise w.refuse("masked_fill of complex numbers with a tensor", "use torch.where")
    return Pair(*(w(aten.masked_fill.Scalar, part, mask, by) for part, by in zip((re, im), fill, strict=True)))


def _cumprod(w: Writer, x: Pair, dim: int, *, dtype: Any = None) -> Pair:
    axis, size = dim % rank_of(x.re), shape_of(x.re)[dim]
    if not isinstance(size, int) or size > 256:
        raise w.refuse("a cumulative product of many complex numbers", _HINT)
    steps = [Pair(*(None if p is None else w.slice(p, axis, i, i + 1) for p in (x.re, x.im))) for i in range(size)]
    for i in range(1, size):
        steps[i] = w.times(steps[i - 1], steps[i])
    return Pair(*(w(aten.cat.default, [w.tensors(step)[part] for step in steps], axis) for part in (0, 1)))


def _adjoint(w: Writer, x: Pair) -> Pair:
    rank = rank_of(x.re)
    order = [*range(rank - 2), rank - 1, rank - 2]
    return w.conj(Pair(*(None if p is None else w(aten.permute.default, p, order) for p in (x.re, x.im))))


# Products.


def _matmul(w: Writer, a: Any, b: Any) -> Pair:
    return w.bilinear(lambda x, y: w(aten.matmul.default, x, y), w.pair(a), w.pair(b))


def _vdot(w: Writer, a: Any, b: Any) -> Pair:
    return _matmul(w, w.conj(w.pair(a)), b)


def _addmm(w: Writer, c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Pair:
    return _add(w, _mul(w, c, beta), _matmul(w, a, b), alpha=alpha)


def _layer(w: Writer, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Pair:
    """Linear layers and convolutions: one of every part, and the bias behind them."""
    product = w.bilinear(lambda a, b: w(w.node.target, a, b, None, *rest), w.pair(x), w.pair(weight))
    if bias is None:
        return product
    own = w.pair(bias)
    trailing = 0 if _name(w.node) == "linear" else rank_of(product.re) - 2
    sizes = [-1, *[1] * trailing]
    shaped = Pair(*(None if p is None else w(aten.reshape.default, p, sizes) for p in (own.re, own.im)))
    return _add(w, product, shaped)


# Fourier transforms.


def _scale(norm: Any, count: int, *, inverse: bool) -> float:
    """Factor of a transform: by default 1/n on the way back, `forward` the other way round, `ortho` on both."""
    if norm == "ortho":
        return count**-0.5
    return 1 / count if (norm == "forward") != inverse else 1.0


def _transform(*, inverse: bool = False, half: str = "", axes: int | None = 1) -> Rule:
    """The rule of a transform.

    Args:
        half: the side that has half of the frequencies: `out`, `in`, or "" for neither.
        axes: how many axes are transformed by default, from the last; None: all of them.
    """

    def rule(w: Writer, x: Any, sizes: Any = None, dim: Any = None, norm: Any = None) -> Any:
        value = w.pair(x)
        rank = rank_of(value.re)
        lengths = None if sizes is None else list(sizes) if isinstance(sizes, list | tuple) else [sizes]
        if dim is None:
            count = len(lengths) if axes is None and lengths else rank if axes is None else axes
            dim = list(range(rank - count, rank))
        dims = [d % rank for d in (dim if isinstance(dim, list | tuple) else [dim])]
        return _along_all(w, value, dims, lengths, norm, inverse=inverse, half=half)

    return rule


def _along_all(
    w: Writer, x: Pair, dims: list[int], lengths: list[int] | None, norm: Any, *, inverse: bool, half: str
) -> Any:
    have = [shape_of(x.re)[d] for d in dims]
    wanted = [n if n is not None and n > 0 else None for n in lengths or [None] * len(dims)]
    full = [2 * (h - 1) if half == "in" and i == len(dims) - 1 else h for i, h in enumerate(have)]
    lengths = [n or f for n, f in zip(wanted, full, strict=True)]
    if not is_static((*have, *lengths)):
        raise w.refuse("a Fourier transform along an axis of dynamic size", "capture with a fixed size of that axis")
    for i, (axis, n) in enumerate(zip(dims, lengths, strict=True)):
        x = _resized(w, x, axis, n // 2 + 1 if half == "in" and i == len(dims) - 1 else n)
    return _primitive(w, x, dims, lengths[-1], _scale(norm, math.prod(lengths), inverse=inverse), inverse, half)


def _primitive(w: Writer, x: Pair, dims: list[int], last: int, scale: float, inverse: bool, half: str) -> Any:
    """The last axis in its form, the others whole; a half that comes in is transformed last."""
    if x.im is None and half != "in" and not inverse:
        x = fourier.along(w, x, dims[-1], lambda p: _of_real(w, p, last, scale, half))
        return _whole_axes(w, x, dims[:-1], inverse)
    if half == "in":
        x = _whole_axes(w, x, dims[:-1], inverse)
        return fourier.along(w, x, dims[-1], lambda p: Pair(fourier.real_of_half(w, p, last, scale), None)).re
    x = fourier.along(w, x, dims[-1], lambda p: fourier.complex_whole(w, p, inverse=inverse, scale=scale))
    return _whole_axes(w, x, dims[:-1], inverse)


def _of_real(w: Writer, x: Pair, n: int, scale: float, half: str) -> Pair:
    found = fourier.real_half(w, x.re, scale)
    return found if half else fourier.mirrored(w, found, n)


def _whole_axes(w: Writer, x: Pair, dims: list[int], inverse: bool) -> Pair:
    for axis in dims:
        x = fourier.along(w, x, axis, lambda p: fourier.complex_whole(w, p, inverse=inverse))
    return x


def _resized(w: Writer, x: Pair, axis: int, size: int) -> Pair:
    have = shape_of(x.re)[axis]
    parts = (w.pad(w.slice(p, axis, 0, min(size, have)), axis, 0, max(size - have, 0)) for p in (x.re, x.im))
    return Pair(*parts)


def _hermitian(*, inverse: bool, axes: int | None = 1) -> Rule:
    """hfft is the real transform back of the conjugate, ihfft the conjugate of the transform: with the other factor."""
    plain = _transform(inverse=not inverse, half="out" if inverse else "in", axes=axes)
    swapped = {None: "forward", "backward": "forward", "forward": "backward", "ortho": "ortho"}

    def rule(w: Writer, x: Any, sizes: Any = None, dim: Any = None, norm: Any = None) -> Any:
        if inverse:
            return w.conj(plain(w, x, sizes, dim, swapped[norm]))
        return plain(w, w.conj(w.pair(x)), sizes, dim, swapped[norm])

    return rule


def _core_scale(x: Pair, dims: list[int], normalization: int, last: int | None = None) -> float:
    sizes = [shape_of(x.re)[d] for d in dims]
    count = math.prod(sizes if last is None else [*sizes[:-1], last])
    return (1.0, count**-0.5, 1 / count)[normalization]


def _r2c(w: Writer, x: Call, dims: list[int], normalization: int, onesided: bool) -> Any:
    value, last = Pair(x, None), shape_of(x)[dims[-1]]
    scale = _core_scale(value, dims, normalization)
    return _primitive(w, value, list(dims), last, scale, False, "out" if onesided else "")


def _c2c(w: Writer, x: Pair, dims: list[int], normalization: int, forward: bool) -> Any:
    scale = _core_scale(x, dims, normalization)
    return _primitive(w, x, list(dims), shape_of(x.re)[dims[-1]], scale, not forward, "")


def _c2r(w: Writer, x: Pair, dims: list[int], normalization: int, last: int) -> Any:
    scale = _core_scale(x, dims, normalization, last)
    return _primitive(w, x, list(dims), last, scale, True, "in")


_PARTWISE = frozenset(
    """
    getitem view _unsafe_view reshape reshape_as view_as flatten unflatten squeeze unsqueeze expand expand_as permute
    transpose t mT numpy_T movedim swapaxes swapdims slice select narrow chunk split split_with_sizes tensor_split unbind
    flip fliplr flipud roll rot90 repeat tile repeat_interleave cat concat concatenate stack hstack vstack dstack
    column_stack index index_select gather take take_along_dim embedding masked_select unfold as_strided diagonal diag
    diag_embed diagonal_scatter tril triu trace slice_scatter select_scatter scatter scatter_add index_add index_copy
    index_put sum mean nansum cumsum diff neg negative clone contiguous alias detach detach_ lift_fresh_copy lift_fresh
    positive dropout constant_pad_nd pad where copy broadcast_to ravel atleast_1d atleast_2d atleast_3d
    fft_fftshift fft_ifftshift
    """.split()
)
"""Operators that are done to each part by itself."""

_FILLING = "zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like empty empty_like new_empty scalar_tensor"

_RULES: dict[str, Rule] = {
    "complex": _complex,
    "polar": _polar,
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
    "real": _real,
    "imag": _imag,
    "abs": _abs,
    "absolute": _abs,
    "angle": _angle,
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
    **dict.fromkeys(_FILLING.split(), _filled),
    **dict.fromkeys(("conj", "_conj", "conj_physical", "_conj_physical"), lambda w, x: w.conj(w.pair(x))),
    **dict.fromkeys(("resolve_conj", "resolve_neg"), lambda w, x: x),
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "true_divide"), _div),
    "reciprocal": lambda w, x: _div(w, 1.0, x),
    "pow": _power,
    "square": lambda w, x: w.times(x, x),
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "rsqrt": lambda w, x: _div(w, 1.0, _sqrt(w, x)),
    **dict.fromkeys(("sgn",), _sgn),
    "eq": _equal,
    "ne": _not_equal,
    "masked_fill": _masked_fill,
    "cumprod": _cumprod,
    **dict.fromkeys(("adjoint", "mH", "matrix_H"), _adjoint),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "linalg_matmul"), _matmul),
    "vdot": _vdot,
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _addmm),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), _layer),
    "fft_fft": _transform(),
    "fft_ifft": _transform(inverse=True),
    "fft_rfft": _transform(half="out"),
    "fft_irfft": _transform(inverse=True, half="in"),
    "fft_hfft": _hermitian(inverse=False),
    "fft_ihfft": _hermitian(inverse=True),
    "fft_fft2": _transform(axes=2),
    "fft_ifft2": _transform(inverse=True, axes=2),
    "fft_rfft2": _transform(half="out", axes=2),
    "fft_irfft2": _transform(inverse=True, half="in", axes=2),
    "fft_fftn": _transform(axes=None),
    "fft_ifftn": _transform(inverse=True, axes=None),
    "fft_rfftn": _transform(half="out", axes=None),
    "fft_irfftn": _transform(inverse=True, half="in", axes=None),
    "_fft_r2c": _r2c,
    "_fft_c2c": _c2c,
    "_fft_c2r": _c2r,
    "stft.default": short_time.stft,
    "stft.center": short_time.centred_stft,
    "istft": short_time.istft,
}
"""Operator (or overload) -> what it is of pairs."""

_ALSO_REAL = frozenset({"angle", "stft", "fft_fftshift", "fft_ifftshift"})
"""Lowered also where no value is complex: `stft` with return_complex=False, the angle of real numbers."""
