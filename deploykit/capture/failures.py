"""Turn what PyTorch raises while tracing into a CaptureError that names op, module, source line and a way out."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from deploykit.capture.origins import describe_line, is_library, op_name
from deploykit.contract.errors import CaptureError, DeploykitError

_WAYS_OUT = (
    (
        ("data-dependent", "DataDependent", "Could not guard", "Could not extract", ".item()"),
        "the model branches on the value of an input, or sizes a tensor by it; use torch.where or masks instead, "
        "or move that decision out of forward",
    ),
    (
        ("Constraints violated", "specialized it to be a constant", "ConstraintViolation"),
        "the model fixes the size of an axis asked to be dynamic; capture without dynamic_batch or dynamic_shapes, "
        "or take sizes from x.shape in forward",
    ),
    (("dynamic_shapes",), "check dynamic_shapes against the structure of example_inputs"),
    (
        ("functorch", "vmap", "fake tensor in the exported program", "has no attribute 'constant'"),
        "write derivatives (torch.func.grad, jacrev, torch.autograd.grad) in closed form or keep them out of the "
        "exported model, and what torch.vmap maps as batched tensor operations",
    ),
    (("_nested_tensor", "NestedTensor"), "feed padded tensors and a mask instead of nested tensors"),
    (("PackedSequence", "_pack_padded"), "feed padded tensors to the recurrent layer instead of packed sequences"),
)
"""Words in what PyTorch says -> what the user can do."""
_DEFAULT_WAY_OUT = (
    "move what is not tensor code out of forward, or pass a torch.export.ExportedProgram that you made yourself"
)


@contextmanager
def translated(model: nn.Module) -> Iterator[None]:
    """Raise CaptureError for any exception inside the block, with what its traceback knows."""
    try:
        yield
    except (DeploykitError, KeyboardInterrupt):
        raise
    except Exception as e:
        place = Place.of(e, model)
        reason = first_line(e)
        scripted = next((n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)), None)
        hint = _way_out(e)
        if scripted is not None and hint == _DEFAULT_WAY_OUT:
            hint = f"{scripted!r} is TorchScript: put the nn.Module that it was made of in its place"
        raise CaptureError(f"PyTorch cannot capture the model{place}: {reason}", hint=hint) from e


class Place:
    """Where in the user's model an exception arose; prints as ` at op in module (source)`, or as nothing."""

    def __init__(self, op: str | None, module_path: str | None, source: str | None) -> None:
        self.op, self.module_path, self.source = op, module_path, source

    @classmethod
    def of(cls, error: BaseException, model: nn.Module) -> Place:
        """Read op, module path and the user's line from the frames of an exception and of those it was raised from."""
        paths = {id(module): name for name, module in model.named_modules()}
        op = module_path = source = library = None
        for frame, line in _frames(error):
            names = frame.f_locals
            if id(names.get("self")) in paths:
                module_path = paths[id(names["self"])]
            op = next((op_name(v) for v in (names.get("func"), names.get("op")) if _is_op(v)), op)
            code = frame.f_code
            text = describe_line(code.co_filename, line, code.co_name, linecache.getline(code.co_filename, line))
            if not is_library(code.co_filename) and "deploykit/capture" not in code.co_filename:
                source = text
            elif "/torch/" not in code.co_filename and "deploykit/capture" not in code.co_filename:
                library = text
        return cls(op or _last_traced_op(error), module_path, source or library or _forward_of(model))

    def __str__(self) -> str:
        parts = [f"at {self.op}" if self.op else "", ""]
        if self.module_path is not None:
            parts[1] = f"in {self.module_path or 'the root module'}"
        where = " ".join(filter(None, parts)) + (f" ({self.source})" if self.source else "")
        return f" {where}" if where.strip() else ""


def first_line(error: BaseException) -> str:
    """The first line of an exception that says something, with its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames from outermost to innermost; those of the deepest cause last."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for each in chain:
        yield from traceback.walk_tb(each.__traceback__)


def _last_traced_op(error: BaseException) -> str | None:
    """The last op of the source text traced so far, where PyTorch hands it over with the exception."""
    ops = re.findall(r"torch\.ops\.(\w+\.\w+\.\w+)\(", str(getattr(error, "partial_fx_graph", "")))
    return ops[-1] if ops else None


def _forward_of(model: nn.Module) -> str | None:
    """Where the model's forward begins: all that is known of what PyTorch refuses after the trace."""
    code = getattr(type(model).forward, "__code__", None)
    if code is None or is_library(code.co_filename):
        return None
    line = linecache.getline(code.co_filename, code.co_firstlineno)
    return describe_line(code.co_filename, code.co_firstlineno, code.co_name, line)


def _is_op(value: Any) -> bool:
    return isinstance(value, torch._ops.OpOverload)


def _way_out(error: BaseException) -> str:
    packed = any(isinstance(v, PackedSequence) for frame, _ in _frames(error) for v in frame.f_locals.values())
    text = f"{type(error).__name__}: {error}" + (" PackedSequence" if packed else "")
    return next((hint for marks, hint in _WAYS_OUT if any(mark in text for mark in marks)), _DEFAULT_WAY_OUT)
