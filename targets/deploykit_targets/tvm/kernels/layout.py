# mypy: disable-error-code="misc,no-untyped-def,valid-type"
# (TVMScript: annotations are buffers, and TVM has no types)
"""NCHW to NHWC and back, at the borders of a model; between them everything is NHWC."""

from __future__ import annotations

from tvm.script import tirx as T

from deploykit_targets.tvm.kernels.expressions import Expr

_BLOCK = 16  # source lines that are read together, so that what is written is written whole


def nchw_to_nhwc(shape: tuple[int, int, int, int], dtype: str) -> Expr:
    """Generate the kernel: (input, output), flat.

    Args:
        shape: the shape of the input: batch, channels, height, width.
        dtype: the dtype of input and output.
    """
    batch, channels, height, width = shape
    return _transpose(batch, channels, height * width, dtype)


def nhwc_to_nchw(shape: tuple[int, int, int, int], dtype: str) -> Expr:
    """Generate the kernel: (input, output), flat.

    Args:
        shape: the shape of the input: batch, height, width, channels.
        dtype: the dtype of input and output.
    """
    batch, height, width, channels = shape
    return _transpose(batch, height * width, channels, dtype)


def _transpose(batch: int, rows: int, columns: int, dtype: str) -> Expr:
    """Each (rows, columns) matrix becomes (columns, rows)."""
    blocks = -(-columns // _BLOCK)

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((batch * rows * columns,), dtype), y: T.Buffer((batch * rows * columns,), dtype)):
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(batch * blocks):
            for i in T.serial(T.min(_BLOCK, columns - task % blocks * _BLOCK)):
                for row in T.serial(rows):
                    y[(task // blocks * columns + task % blocks * _BLOCK + i) * rows + row] = a[
                        (task // blocks * rows + row) * columns + task % blocks * _BLOCK + i
                    ]

    return kernel
