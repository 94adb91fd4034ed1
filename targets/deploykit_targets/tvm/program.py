"""A compiled model as data: which kernel runs when, and on which bytes.

The lowering writes a `Program` beside the kernels; the build puts both into one library; the runtime walks it. All
memory is planned ahead: one read-only block of constants, one arena for everything that changes, inputs and outputs
included.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ALIGNMENT = 64
"""Bytes: every offset is a multiple, which is a cache line and the widest vector."""


class Region(StrEnum):
    """Where bytes live."""

    CONSTANTS = "constants"  # packed weights, scales and biases; read only
    ARENA = "arena"  # inputs, outputs and everything between; reused once nothing reads it any more


@dataclass(frozen=True)
class Operand:
    """A flat, dense array that a kernel reads or writes.

    Attributes:
        offset: bytes from the region's start, a multiple of `ALIGNMENT`.
        elements: as the kernel declares them; may be a few more than the tensor has (`ConvPlan.input_elements`).
        dtype: NumPy's name.
    """

    region: Region
    offset: int
    elements: int
    dtype: str


@dataclass(frozen=True)
class Step:
    """One call of a kernel.

    Attributes:
        symbol: name of the kernel's function in the library, without TVM's own prefix.
        operands: in the order of the kernel's arguments; the last one is written.
        node: the node of the captured graph that it computes; the name that calibration, parity and layers use.
        kind: family of the kernel (`conv`, `depthwise`, `matmul`, `add`, ...).
        macs: multiply-accumulates of the layer as defined; 0 for other kinds.
        integer: whether the multiplications run on integers.
    """

    symbol: str
    operands: tuple[Operand, ...]
    node: str
    kind: str
    macs: int = 0
    integer: bool = False

    @property
    def computes(self) -> str:
        """What a layer multiplies, as `Achieved` counts it: that of both operands in memory."""
        multiplied = {operand.dtype for operand in self.operands[:2]}
        return "int8" if self.integer else "bfloat16" if multiplied == {"uint16"} else "float32"


@dataclass(frozen=True)
class Port:
    """An input or output of the model, in the user's own layout and dtype.

    Attributes:
        shape: elements per axis; fixed.
        dtype: NumPy's name.
        offset: bytes from the arena's start.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int


@dataclass(frozen=True)
class Program:
    """The whole model.

    Attributes:
        inputs, outputs: in the captured model's order.
        steps: in the order they run.
        constant_bytes, arena_bytes: sizes of the two regions.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    constant_bytes: int
    arena_bytes: int
