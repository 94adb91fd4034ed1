"""Neighbouring pixels of an output line that a depthwise kernel computes together, and the input that they read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from deploykit_targets.tvm.kernels.conv_plan import ConvShape
from deploykit_targets.tvm.kernels.expressions import Expr, vector_start
from deploykit_targets.tvm.kernels.script import T


@dataclass(frozen=True)
class LineTile(ABC):
    """Tiles of a line; what they read of the input is counted in columns from a tile's first one.

    Attributes:
        shape: of the convolution, padded.
        padding: rows and columns that the buffer lacks: top, bottom, left, right.
    """

    shape: ConvShape
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    @abstractmethod
    def pixels(self) -> int:
        """Pixels of a tile."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """Columns of the input that a tile reads, padding among them."""

    @property
    def spans(self) -> int:
        """Tiles that cover a line; the last may overlap the one before."""
        return math.ceil(self.shape.output[1] / self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input buffer."""
        top, bottom, left, right = self.padding
        return self.shape.height - top - bottom, self.shape.width - left - right

    @property
    def input_elements(self) -> int:
        """Elements of the input buffer."""
        return self.shape.batch * math.prod(self.size) * self.shape.channels

    @property
    def inner(self) -> tuple[int, int]:
        """Numbers of the first tile all of whose columns lie within the buffer, and of the first after."""
        starts = [min(x * self.pixels, self.shape.output[1] - self.pixels) for x in range(self.spans)]
        left = [start * self.shape.stride[1] - self.padding[2] for start in starts]
        within = [x for x in range(self.spans) if left[x] >= 0 and left[x] + self.columns <= self.size[1]]
        return (within[0], within[-1] + 1) if within else (self.spans, self.spans)

    def pixel(self, x: Expr) -> Expr:
        """First pixel of tile `x`."""
        return vector_start(x, self.pixels, self.shape.output[1])

    def meets_row(self, line: Expr, ky: Expr) -> Expr:
        """Whether the window's row `ky` lies in the buffer; `True` where every line's does."""
        if self.padding[:2] == (0, 0):
            return True
        return T.And(self._row(line, ky) >= 0, self._row(line, ky) < self.size[0])

    def meets_column(self, x: Expr, column: Expr) -> Expr:
        """Whether a column of a tile lies in the buffer."""
        return T.And(self._column(x, column) >= 0, self._column(x, column) < self.size[1])

    def read(self, line: Expr, x: Expr, ky: Expr, column: Expr, *, within: bool = False) -> Expr:
        """Where the channels of a column of a tile begin, in the window's row `ky`.

        Args:
            within: of rows outside the buffer, take the nearest one inside.
        """
        height, width = self.size
        row = self._row(line, ky)
        row = line // self.shape.output[0] * height + (T.max(0, T.min(row, height - 1)) if within else row)
        return (row * width + self._column(x, column)) * self.shape.channels

    def _row(self, line: Expr, ky: Expr) -> Expr:
        """A row of the buffer's image; it may lie outside."""
        shape = self.shape
        return line % shape.output[0] * shape.stride[0] + ky * shape.dilation[0] - self.padding[0]

    def _column(self, x: Expr, column: Expr) -> Expr:
        return self.pixel(x) * self.shape.stride[1] + column - self.padding[2]
