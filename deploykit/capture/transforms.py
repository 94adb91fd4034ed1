"""Function transforms (`torch.vmap`) inside a model: traced as bookkeeping calls, which PyTorch then resolves.

torch.export records that a batch axis is added and removed around the calls of a mapped function; running the program
through PyTorch's decompositions gives plain batched operators. A trace that fails inside a transform leaves PyTorch's
stack of transforms as it was then, where the next one would crash: `clean_stack` takes off what was left.

Derivatives (`grad`, `jvp`, `jacrev`) are refused: a deployed graph computes none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._C import _functorch as stack
from torch._functorch import apis
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploykit.capture.failures import first_line
from deploykit.capture.origins import origin_of
from deploykit.contract.errors import CaptureError

_MODULE = "torch._functorch.predispatch"
_MAPS = "vmap_impl"  # of PyTorch's own module: what every torch.vmap calls
_OF_VMAP = frozenset(
    {
        *("lazy_load_decompositions", "_vmap_increment_nesting", "_vmap_decrement_nesting"),
        *("_add_batch_dim", "_remove_batch_dim"),
    }
)

UNTRACED = ("functorch", "fake tensor in the exported program", "has no attribute 'constant'")
"""Words of what torch.export says where it cannot trace a transform."""


def without_transforms(program: ExportedProgram) -> ExportedProgram:
    """The program with mapped functions resolved to batched operators.

    Raises:
        CaptureError: one of the transforms is a derivative, or PyTorch cannot resolve it.
    """
    calls = [n for n in program.graph.nodes if getattr(n.target, "__module__", "") == _MODULE]
    for node in calls:
        if node.target.__name__ not in _OF_VMAP:
            raise CaptureError(
                f"the model takes a derivative while it runs: {origin_of(node)}",
                hint="compute it in closed form, or keep that part out of the exported model",
            )
    if not calls:
        return program
    try:
        with clean_stack():
            resolved: ExportedProgram = program.run_decompositions({})
            return resolved
    except Exception as e:
        raise CaptureError(
            f"PyTorch cannot resolve a mapped function: {origin_of(calls[-1])}: {first_line(e)}",
            hint="write what torch.vmap maps as batched tensor operations",
        ) from e


@contextmanager
def mapped_to_the_front() -> Iterator[None]:
    """torch.vmap puts the mapped axis first and moves it behind that: it cannot be traced putting it elsewhere."""
    plain: Any = getattr(apis, _MAPS)

    def mapped(function: Any, in_dims: Any, out_dims: Any, *rest: Any, **options: Any) -> Any:
        results, structure = pytree.tree_flatten(plain(function, in_dims, 0, *rest, **options))
        axes = pytree._broadcast_to_and_flatten(out_dims, structure)
        if axes is None or not all(isinstance(axis, int) for axis in axes):
            return plain(function, in_dims, out_dims, *rest, **options)  # PyTorch says what is wrong with them
        moved = (x.movedim(0, axis) if axis else x for x, axis in zip(results, axes, strict=True))
        return pytree.tree_unflatten(list(moved), structure)

    setattr(apis, _MAPS, mapped)
    try:
        yield
    finally:
        setattr(apis, _MAPS, plain)


@contextmanager
def clean_stack() -> Iterator[None]:
    """Take off the transforms that an exception left on PyTorch's stack."""
    depth = stack.get_dynamic_layer_stack_depth()
    try:
        yield
    except BaseException:
        stack.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        raise
