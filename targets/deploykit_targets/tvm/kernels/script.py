"""TVM's language for kernels (`T`), without reading the source of every frame of the stack.

TVM looks at the frames above a kernel when it parses one, and again for each part that a kernel is put together from.
It asks for all of them with their source lines, for which the interpreter goes through every module that is loaded, and
reads `f_locals`, `f_globals` and one line: beside PyTorch that was more than half of the time a kernel took to write.
Here it gets what it reads, whoever else uses TVM in this process; another version of it, which asks in another way, is
left alone.
"""

from __future__ import annotations

import inspect
import linecache
import sys
from types import FrameType, ModuleType
from typing import Any

from tvm.script import tirx as T
from tvm.script.parser.core import parser
from tvm.tirx.script.parser import entry

__all__ = ["T"]

_READ = 2
"""The frame whose line tells whether a function is one of a class (`is_defined_in_class` of TVM)."""


class _Frames(ModuleType):
    """The module `inspect`, but for two functions."""

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)

    @staticmethod
    def stack() -> list[inspect.FrameInfo]:
        """Frames from the caller's upwards, of which one has its line."""
        found = _from(sys._getframe(1))
        for place in range(_READ, min(_READ + 1, len(found))):
            line = linecache.getline(found[place].filename, found[place].lineno)
            found[place] = _info(found[place].frame, [line] if line else None)
        return found

    @staticmethod
    def getouterframes(frame: FrameType) -> list[inspect.FrameInfo]:
        """A frame and those above it, without lines."""
        return _from(frame)


def _from(frame: FrameType | None) -> list[inspect.FrameInfo]:
    found = []
    while frame is not None:
        found.append(_info(frame))
        frame = frame.f_back
    return found


def _info(frame: FrameType, lines: list[str] | None = None) -> inspect.FrameInfo:
    code = frame.f_code
    return inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, lines, 0 if lines else None)


for _module in (parser, entry):
    if getattr(_module, "inspect", None) is inspect:
        _module.inspect = _Frames("inspect")
