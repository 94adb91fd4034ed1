"""Dynamic axes: from what the user asks for to torch.export's terms, and from symbolic sizes back to names.

PyTorch takes an example size of 0 or 1 for a constant, so a size of 1 on a dynamic axis is doubled while tracing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.export.dynamic_shapes import Dim, _DimHint

from deploykit.capture.failures import translated
from deploykit.capture.inputs import Leaf
from deploykit.contract.errors import UsageError
from deploykit.contract.quiet import quiet, silent

if TYPE_CHECKING:
    import sympy

    from deploykit.capture.model import CapturedModel

BATCH = "batch"
Axes = Mapping[int, Any]


def batch_axes(flat: Sequence[tuple[Leaf, Any]]) -> dict[str, dict[int, Any]]:
    """Axis 0 of every tensor under one symbol.

    Raises:
        UsageError: the inputs disagree on the size of axis 0, or none has an axis.
    """
    tensors = {leaf.name: x for leaf, x in flat if isinstance(x, Tensor) and x.dim()}
    sizes = {name: int(x.shape[0]) for name, x in tensors.items()}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "no input has an axis"
        raise UsageError(
            f"dynamic_batch=True makes axis 0 of every input one batch axis, and their sizes differ: {listed}",
            hint="name the dynamic axes yourself with dynamic_shapes=, as torch.export takes them",
        )
    dim = Dim(BATCH, min=1)
    return {name: {0: dim} for name in tensors}


def axes_of(
    flat: Sequence[tuple[Leaf, Any]], dynamic_shapes: Any, arguments: Sequence[str]
) -> dict[str, dict[int, Any]]:
    """Flatten torch.export's `dynamic_shapes` (dict by argument or tuple) to {flat name: {axis: dim}}.

    Raises:
        UsageError: it is neither, or names an argument the model was not given.
    """
    if isinstance(dynamic_shapes, tuple | list):
        dynamic_shapes = dict(zip(arguments, dynamic_shapes, strict=False))
    if not isinstance(dynamic_shapes, Mapping):
        raise UsageError(f"dynamic_shapes is a {type(dynamic_shapes).__name__}; give a dict by argument, or a tuple")
    unknown = set(dynamic_shapes) - {leaf.path[0] for leaf, _ in flat}
    if unknown:
        raise UsageError(
            f"dynamic_shapes names {', '.join(sorted(map(str, unknown)))}, which example_inputs lacks",
            hint=f"the arguments are {', '.join(dict.fromkeys(str(leaf.path[0]) for leaf, _ in flat))}",
        )
    return {leaf.name: _axes_at(dynamic_shapes, leaf) for leaf, x in flat if isinstance(x, Tensor)}


def _axes_at(shapes: Any, leaf: Leaf) -> dict[int, Any]:
    found = shapes
    for step in leaf.path:
        if found is None:
            return {}
        found = found.get(step) if isinstance(found, Mapping) else found[int(step)]
    if found is None:
        return {}
    pairs = found.items() if isinstance(found, Mapping) else enumerate(found)
    axes = {int(axis): dim for axis, dim in pairs if _is_dynamic(dim)}
    odd = [dim for dim in axes.values() if isinstance(dim, str) and not dim.isidentifier()]
    if odd:
        raise UsageError(f"{odd[0]!r} names no axis", hint='give a name of letters, digits and _, such as "batch"')
    return axes


def dim_of(asked: Any) -> Any:
    """What torch.export is given for an axis: one that has a name alone finds its bounds itself."""
    return Dim.DYNAMIC if isinstance(asked, str) else asked


def _is_dynamic(dim: Any) -> bool:
    return not (dim is None or isinstance(dim, int) or dim is Dim.STATIC)


def doubled(tensor: Tensor, axes: Axes) -> Tensor:
    """Repeat a tensor along its dynamic axes of size 1."""
    for axis in axes:
        if tensor.shape[axis] == 1:
            tensor = torch.cat([tensor, tensor], dim=axis)
    return tensor


class Symbols:
    """Names for the symbolic sizes of a traced program.

    Attributes:
        ranges: symbol name -> (smallest, largest or None) size.
    """

    def __init__(self, placeholders: Sequence[fx.Node], asked: Mapping[str, Axes], constraints: Mapping[Any, Any]):
        self._names: dict[sympy.Symbol, str] = {}
        self.ranges: dict[str, tuple[int, int | None]] = {}
        for node in placeholders:
            name = str(node.target)
            for axis, size in enumerate(node.meta["val"].shape):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self._name(size.node.expr, name, axis, asked.get(name, {}).get(axis), constraints)

    def _name(self, symbol: Any, name: str, axis: int, dim: Any, constraints: Mapping[Any, Any]) -> None:
        if symbol in self._names:
            return
        given = dim if isinstance(dim, str) else None if isinstance(dim, _DimHint) else getattr(dim, "__name__", None)
        free = BATCH if axis == 0 and BATCH not in self.ranges else f"{name}_dim_{axis}"
        self._names[symbol] = chosen = given or free
        found = constraints.get(symbol)
        upper = None if found is None or not found.upper.is_Integer else int(found.upper)
        lower = 1 if found is None else max(int(found.lower), 1)
        # PyTorch begins at 2 where no bound is given, because it takes a traced 1 for a constant; 1 works all the same.
        self.ranges[chosen] = (1 if lower == 2 and isinstance(dim, str) else lower, upper)

    def size(self, size: Any) -> int | str:
        """An int, or the text of a symbolic size such as `batch` or `batch*2`."""
        if isinstance(size, int):
            return size
        expr = size.node.expr
        if expr.is_Integer:
            return int(expr)
        if expr in self._names:
            return self._names[expr]
        import sympy

        return str(expr.subs({symbol: sympy.Symbol(name) for symbol, name in self._names.items()}))

    def axes(self, placeholders: Sequence[fx.Node]) -> dict[str, dict[int, str]]:
        """Input name -> {axis: symbol} for the inputs that have dynamic axes."""
        found = {
            str(node.target): {
                i: text for i, s in enumerate(node.meta["val"].shape) if isinstance(text := self.size(s), str)
            }
            for node in placeholders
        }
        return {name: axes for name, axes in found.items() if axes}


def reexport(graph_module: fx.GraphModule, captured: CapturedModel) -> torch.export.ExportedProgram:
    """Export a flat graph with the captured dynamic axes; see `CapturedModel.export_program`."""
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in captured.symbol_ranges.items()}
    shapes = tuple(
        {axis: dims.get(symbol, Dim.AUTO) for axis, symbol in captured.dynamic_axes.get(spec.name, {}).items()}
        for spec in captured.inputs
    )
    pairs = zip(captured.inputs, captured.example_inputs, strict=True)
    examples = tuple(doubled(x, captured.dynamic_axes.get(spec.name, {})) for spec, x in pairs)
    with quiet(), torch.no_grad(), translated(graph_module), silent():
        return torch.export.export(graph_module, examples, dynamic_shapes=shapes if any(shapes) else None)
