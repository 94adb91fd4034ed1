"""Where a node comes from: module path and source line, read from what PyTorch records while tracing."""

from __future__ import annotations

import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)(?:\n\s*(?!File ")(?P<code>[^\n]*))?'
)
_GENERATED = "<eval_with_key>"  # code that PyTorch wrote while it traced: nobody can look it up
_TORCH = str(Path(torch.__file__).parent)
_LIBRARIES = tuple({sysconfig.get_paths()[key] for key in ("purelib", "platlib", "stdlib", "platstdlib")})


@dataclass(frozen=True)
class Origin:
    """Where a graph node comes from.

    Attributes:
        module_path: dotted path of the innermost module, such as `layer1.0.conv2`; empty for the root.
        op: the op, such as `aten.conv2d.default`.
        source: `model.py:42 in forward: return self.conv(x)`, the user's own line rather than a library's;
            None where PyTorch recorded none.
    """

    module_path: str
    op: str
    source: str | None

    def __str__(self) -> str:
        where = self.module_path or "the root module"
        return f"{self.op} in {where}" + (f" ({self.source})" if self.source else "")


def origin_of(node: fx.Node) -> Origin:
    """The origin of a call_function node."""
    return Origin(module_path_of(node), op_name(node.target), source_of(node.meta.get("stack_trace")))


def module_path_of(node: fx.Node) -> str:
    """Dotted path of the innermost module that made a node; empty for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return path.split("@")[0]


def op_name(target: object) -> str:
    """`aten.conv2d.default` for an overload, the function's name otherwise."""
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def source_of(trace: str | None) -> str | None:
    """Pick the innermost line of the user's own code from a stack trace; a library's line where there is none.

    Returns:
        `model.py:42 in forward: return self.conv(x)`, or None without a usable trace.
    """
    frames = [match.groupdict() for match in _FRAME.finditer(trace or "")]
    frames = [frame for frame in frames if not frame["file"].startswith(_GENERATED)]
    own = [f for f in frames if not f["file"].startswith(_LIBRARIES)]
    library = [f for f in frames if not f["file"].startswith(_TORCH)]
    best = (own or library or frames)[-1:]
    return describe_line(best[0]["file"], int(best[0]["line"]), best[0]["function"], best[0]["code"]) if best else None


def describe_line(file: str, line: int, function: str, code: str | None) -> str:
    """One source line in the form of `Origin.source`; only the base name of the file."""
    return f"{Path(file).name}:{line} in {function}" + (f": {code.strip()}" if code else "")


def is_library(file: str) -> bool:
    """Whether a file belongs to the standard library or an installed package."""
    return file.startswith(_LIBRARIES) or file.startswith("<")
