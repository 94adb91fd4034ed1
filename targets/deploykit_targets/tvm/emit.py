"""Steps and kernels of a program while it is written: equal kernels are made once, memory is placed at the end.

`Emitter` knows arithmetic on values (`values`) and nothing of PyTorch's graph; `lower` walks that, `ops` translate it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm

from deploykit_targets.tvm.expression import Expression, expression_of, table_of
from deploykit_targets.tvm.kernels.bfloat16 import BFLOAT16
from deploykit_targets.tvm.kernels.border import border
from deploykit_targets.tvm.kernels.expressions import Affine
from deploykit_targets.tvm.kernels.isa import Isa
from deploykit_targets.tvm.kernels.mapped import Access, mapped
from deploykit_targets.tvm.kernels.table import table
from deploykit_targets.tvm.planning import ConstantBlock, place
from deploykit_targets.tvm.program import ALIGNMENT, Operand, Port, Program, Region, Step
from deploykit_targets.tvm.values import (
    Array,
    Buffer,
    Constant,
    Lazy,
    Shape,
    Tensor,
    View,
    dense_strides,
    elements,
    order_of,
)


@dataclass(frozen=True, eq=False)
class Part:
    """Flat stretch of a buffer as one argument of a kernel."""

    buffer: Buffer
    elements: int
    offset: int = 0  # in elements; a multiple of the alignment in bytes


@dataclass(frozen=True, eq=False)
class Draft:
    """A step before memory is placed; see `program.Step`."""

    symbol: str
    reads: tuple[Part, ...]
    writes: tuple[Part, ...]
    node: str
    kind: str
    macs: int
    integer: bool


@dataclass
class Emitter:
    """Collects the steps of one model.

    Attributes:
        isa: instruction set of the kernels.
        node: the node of the captured graph that steps are written for; `lower` sets it.
        prefix: the prefix of all symbols, where a library has several programs.
        block: takes the constants; programs of a library share it.
    """

    isa: Isa
    node: str = ""
    prefix: str = ""
    block: ConstantBlock = field(default_factory=ConstantBlock)
    steps: list[Draft] = field(default_factory=list)
    _kernels: dict[Hashable, str] = field(default_factory=dict)
    _functions: dict[str, Any] = field(default_factory=dict)
    _constants: dict[tuple[str, bytes], Buffer] = field(default_factory=dict)

    # Calls.

    def call(
        self,
        kind: str,
        key: Hashable,
        make: Callable[[], Any],
        reads: Sequence[Part],
        writes: Sequence[Part],
        *,
        macs: int = 0,
        integer: bool = False,
    ) -> None:
        """Add a step; its kernel is made unless one of the same kind and key is there.

        Args:
            kind: family, part of the symbol.
            key: everything that the kernel depends on.
            make: generates it.
            reads, writes: arguments, in this order.
        """
        symbol = self._kernels.get((kind, key))
        if symbol is None:
            symbol = self._kernels[kind, key] = f"{self.prefix}{kind}_{len(self._kernels)}"
            self._functions[symbol] = make().with_attr("global_symbol", symbol)
        for part in (*reads, *writes):
            part.buffer.hold(part.offset + part.elements)
        self.steps.append(Draft(symbol, tuple(reads), tuple(writes), self.node, kind, macs, integer))

    def constant(self, array: Array) -> Buffer:
        """The buffer of a constant; equal ones share it."""
        flat = np.ascontiguousarray(array).ravel()
        flat = flat.astype(np.uint8) if flat.dtype == np.bool_ else flat
        key = (str(flat.dtype), flat.tobytes())
        if key not in self._constants:
            self._constants[key] = Buffer(str(flat.dtype), flat.size, flat)
        return self._constants[key]

    def new(self, shape: Shape, dtype: str, order: Sequence[int] | None = None, affine: Affine | None = None) -> View:
        """A dense tensor in memory that nothing has written yet."""
        boolean = dtype == "bool"
        buffer = Buffer("uint8" if boolean else dtype, max(1, elements(shape)))
        axes = tuple(range(len(shape))) if order is None else order
        return View(buffer, shape, dense_strides(shape, axes), affine=affine, boolean=boolean)

    # Values in memory.

    def view(self, value: Tensor) -> View:
        """Where a value is, after computing it if need be, in whatever layout is natural."""
        if isinstance(value, View):
            return value
        if isinstance(value, Constant):
            buffer = self.constant(value.real)
            shape = value.shape
            return View(buffer, shape, dense_strides(shape, range(len(shape))), boolean=value.array.dtype == np.bool_)
        if value.view is None:
            self.compute(value, natural_order(value))
        assert value.view is not None
        return value.view

    def compute(self, value: Lazy, order: Sequence[int]) -> View:
        """Compute a lazy value into a new dense tensor."""
        value.view = self._store(value, self.new(value.shape, value.dtype, order, value.affine))
        return value.view

    def dense(self, value: Tensor, order: Sequence[int] | None = None, *, real: bool = False) -> View:
        """A value without gaps in a given order of axes, at an aligned place.

        Args:
            order: outermost axis first; by default the logical one.
            real: quantized values are turned to float32.
        """
        axes = tuple(range(len(value.shape))) if order is None else tuple(order)
        if real and quantization(value) is not None:
            return self.store(value, self.new(value.shape, "float32", axes))
        if isinstance(value, Lazy) and value.view is None:
            return self.compute(value, axes)
        view = self.view(value)
        if view.is_dense(axes) and view.offset * itemsize(view.dtype) % ALIGNMENT == 0:
            return view
        return self.store(view, self.new(view.shape, "bool" if view.boolean else view.dtype, axes, view.affine))

    def store(self, value: Tensor, into: View) -> View:
        """Write a value to memory, with one kernel for all that it is lazily made of.

        Args:
            into: a scalar of the result's kind; where it is quantized, `value` is, too. A float32 target takes real
                numbers.
        """
        if isinstance(value, Lazy) and value.shared:
            value = self.view(value)
        return self._store(value, into)

    def _store(self, value: Tensor, into: View) -> View:
        if not elements(into.shape):
            return into
        found = expression_of(self, value, into.shape, real=into.affine is None)
        if not self._looked_up(value, found, into):
            self._mapped(found, into)
        return into

    def _mapped(self, found: Expression, into: View) -> None:
        order = order_of(into.shape, into.strides)
        sizes = tuple(into.shape[axis] for axis in order)
        parts, accesses = [], []
        for view in (*found.leaves, into):
            start = view.offset - view.offset % (ALIGNMENT // itemsize(view.dtype))
            access = Access(view.dtype, tuple(view.strides[axis] for axis in order), view.offset - start)
            accesses.append(access)
            parts.append(Part(view.buffer, access.extent(sizes), start))
        key = (sizes, tuple(accesses), found.key)
        self.call("map", key, lambda: mapped(sizes, accesses[:-1], accesses[-1], found.compute), parts[:-1], parts[-1:])

    def _looked_up(self, value: Tensor, found: Expression, into: View) -> bool:
        """Whether a table did it: of one quantized tensor, and more than a change of scale."""
        if not (isinstance(value, Lazy) and found.costly and len(found.leaves) == 1 and into.affine is not None):
            return False
        (source,) = found.leaves
        if BFLOAT16 in (source.dtype, into.dtype):
            return False
        if source.affine is None or source.shape != into.shape or not into.is_dense(into.order):
            return False
        dense = self.dense(source, into.order)
        count, entries = elements(into.shape), table_of(value, source)
        self.call(
            "table",
            (count, source.dtype, into.dtype),
            lambda: table(count, source.dtype, into.dtype),
            [whole(dense), Part(self.constant(entries), 256)],
            [whole(into)],
        )
        return True

    def fill(self, into: View, value: float) -> None:
        """Write one number everywhere."""
        number = np.asarray(value, dtype=np.bool_ if into.boolean else into.dtype)
        self.store(Constant(number), replace(into, affine=None))

    def padded(self, value: Tensor, padding: tuple[int, int, int, int], fill: float) -> View:
        """An image (batch, channels, height, width) in NHWC with a border.

        Args:
            padding: top, bottom, left, right.
            fill: in units of what is stored.
        """
        order = (0, 2, 3, 1)
        if not any(padding):
            return self.dense(value, order)
        batch, channels, height, width = value.shape
        top, bottom, left, right = padding
        tall, wide = height + top + bottom, width + left + right
        affine = quantization(value)
        dtype = dtype_of(value)
        result = self.new((batch, channels, tall, wide), dtype, order, affine)
        inner = replace(result, shape=value.shape, offset=top * result.strides[2] + left * result.strides[3])
        self.store(value, inner)
        shape = (batch, height, width, channels)
        key = (shape, padding, dtype, fill)
        self.call("border", key, lambda: border(shape, padding, dtype, value=fill), [], [whole(result)])
        return result

    # The end.

    def finish(self, inputs: Sequence[tuple[str, View]], outputs: Sequence[tuple[str, View]]) -> Finished:
        """Place everything in memory."""
        used = dict.fromkeys(part.buffer for step in self.steps for part in step.reads if part.buffer.data is not None)
        offsets = {buffer: self.block.place(buffer) for buffer in used}
        placed, arena_bytes = place(
            [([p.buffer for p in step.reads], [p.buffer for p in step.writes]) for step in self.steps],
            [view.buffer for _, view in inputs],
            [view.buffer for _, view in outputs],
        )
        offsets.update(placed)

        def operand(part: Part) -> Operand:
            region = Region.ARENA if part.buffer.data is None else Region.CONSTANTS
            start = offsets[part.buffer] + part.offset * itemsize(part.buffer.dtype)
            return Operand(region, start, part.elements, part.buffer.dtype)

        def port(name: str, view: View) -> Port:
            return Port(name, view.shape, "bool" if view.boolean else view.dtype, offsets[view.buffer])

        program = Program(
            tuple(port(*pair) for pair in inputs),
            tuple(port(*pair) for pair in outputs),
            tuple(
                Step(d.symbol, tuple(map(operand, (*d.reads, *d.writes))), d.node, d.kind, d.macs, d.integer)
                for d in self.steps
            ),
            self.block.size,
            arena_bytes,
        )
        called = {step.symbol for step in self.steps}
        functions = {name: function for name, function in self._functions.items() if name in called}
        return Finished(tvm.IRModule(functions), program, self.block)


@dataclass(frozen=True, eq=False)
class Finished:
    """A model as kernels, program and constants; `block` may have those of programs that were finished later, too."""

    module: Any
    program: Program
    block: ConstantBlock

    @property
    def constants(self) -> bytes:
        """The bytes that the program reads."""
        return self.block.data[: self.program.constant_bytes]


def whole(view: View, count: int | None = None) -> Part:
    """A dense view as a kernel's argument.

    Args:
        count: elements that the kernel declares, where it is more than the tensor has.
    """
    return Part(view.buffer, elements(view.shape) if count is None else count, view.offset)


def itemsize(dtype: str) -> int:
    """Bytes per element."""
    return np.dtype(dtype).itemsize


def quantization(value: Tensor) -> Affine | None:
    """Scale and zero point of a quantized value."""
    return None if isinstance(value, Constant) else value.affine


def dtype_of(value: Tensor) -> str:
    """The type of the elements in memory, `bool` for truth values."""
    if isinstance(value, Constant):
        return str(value.real.dtype)
    if isinstance(value, View) and value.boolean:
        return "bool"
    return value.dtype


def natural_order(value: Tensor) -> Shape:
    """The order of axes in which a value is read best: that of its largest source."""
    if isinstance(value, View):
        return value.order
    if isinstance(value, Lazy):
        for argument in value.arguments:
            if argument.shape == value.shape and not isinstance(argument, Constant):
                return natural_order(argument)
    return tuple(range(len(value.shape)))
