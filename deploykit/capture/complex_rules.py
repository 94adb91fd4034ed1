"""What becomes of operators that mix the two parts of complex numbers: arithmetic, products, and to and from real ones.

A rule takes a `Writer` and the operator's arguments, with pairs in place of complex tensors, and gives a pair or, where
the result is real, a node.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from deploykit.capture import fourier_rules, short_time
from deploykit.capture.complex_pairs import REAL_OF, UNKNOWN, Pair, Writer, each, leaves, real_part
from deploykit.capture.editor import Call, rank_of, shape_of

aten = torch.ops.aten
Rule = Callable[..., Any]


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
    """The angle of a real number: 0 or pi, as PyTorch has it for -0.0 too."""
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
    real = w(w.node.target, *each(args, real_part), **kwargs)
    has = any(isinstance(leaf, complex) and leaf.imag for leaf in leaves(args))
    imag = each(args, lambda leaf: leaf.imag if isinstance(leaf, complex) else real_part(leaf))
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
        raise w.refuse("a complex power whose exponent is a tensor", UNKNOWN)
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
        raise w.refuse("a cumulative product of many complex numbers", UNKNOWN)
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
    trailing = 0 if w.node.target is aten.linear.default else rank_of(product.re) - 2
    sizes = [-1, *[1] * trailing]
    shaped = Pair(*(None if p is None else w(aten.reshape.default, p, sizes) for p in (own.re, own.im)))
    return _add(w, product, shaped)


_FILLING = (
    *("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"),
    *("empty", "empty_like", "new_empty", "scalar_tensor"),
)

RULES: dict[str, Rule] = {
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
    **dict.fromkeys(_FILLING, _filled),
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
    **fourier_rules.RULES,
    "stft.default": short_time.stft,
    "stft.center": short_time.centred_stft,
    "istft": short_time.istft,
}
"""Operator (or overload) -> what it is of pairs."""
