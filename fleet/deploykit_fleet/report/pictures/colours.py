"""Which colour class a precision has, the same in every picture; colours themselves are in `page.css`."""

from __future__ import annotations

_BY_BITS = (
    ("int4", "p4"),
    ("palette4", "p4"),
    ("int8", "p8"),
    ("palette6", "p8"),
    ("int16", "p16i"),
    ("fp8", "pf8"),
    ("float8", "pf8"),
    ("fp16", "pf16"),
    ("float16", "pf16"),
    ("bf16", "pf16"),
    ("bfloat16", "pf16"),
    ("float32", "pf32"),
    ("fp32", "pf32"),
    ("tf32", "pf32"),
    ("mixed", "p8"),
)
OTHER = "px"


def colour_of(precision: str) -> str:
    """CSS class of a precision, asked for or achieved."""
    return next((kind for name, kind in _BY_BITS if precision.startswith(name)), OTHER)
