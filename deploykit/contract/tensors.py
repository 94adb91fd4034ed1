"""`TensorSpec`: the name, shape and dtype of one input or output, shared by capture, sessions and manifests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_DTYPE = re.compile("bool|u?int(8|16|32|64)|float(16|32|64)")

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TensorSpec:
    """One model input or output.

    Attributes:
        name: as the user's code names it (argument name, dict key) or `output`, `output_0`, ...
        shape: one entry per axis; an int is fixed, a str names a dynamic axis (equal names are equal sizes).
        dtype: NumPy name, such as `float32` or `int64`.
        layout: axis order where it has a conventional name (`NCHW`, `NHWC`), else None.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    layout: str | None = None

    @property
    def has_known_dtype(self) -> bool:
        """Whether `dtype` is NumPy's name of a number or truth value."""
        return _DTYPE.fullmatch(self.dtype) is not None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` fits: same rank, and every fixed axis equal."""
        return len(shape) == len(self.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"
