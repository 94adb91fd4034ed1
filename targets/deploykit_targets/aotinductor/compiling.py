"""Compile to the same bytes wherever: no folder of this machine gets into the native code.

A compiler writes the names of its source files into what it makes: into messages of checks, and into debug
information. Here these lie in a temporary folder and in the environment that PyTorch is installed in.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._inductor import cpp_builder
from torch._inductor.runtime.cache_dir_utils import cache_dir

_lock = threading.Lock()
OPTIONS = {"aot_inductor.enable_line_tables": False}
"""Options of the compiler: no debug information."""


@contextlib.contextmanager
def without_paths() -> Iterator[None]:
    """Compile inside the block with the folders of this machine replaced by names; one thread at a time.

    The compiler's options cannot say it: they are part of the names of the generated files.
    """
    with _lock:
        before = cpp_builder.run_compile_cmd
        cpp_builder.run_compile_cmd = _mapped(before, _prefixes())
        try:
            yield
        finally:
            cpp_builder.run_compile_cmd = before


def _prefixes() -> list[str]:
    folders = {str(Path(cache_dir()).resolve()): "generated", cache_dir(): "generated"}
    folders[str(Path(torch.__file__).resolve().parent)] = folders[str(Path(torch.__file__).parent)] = "torch"
    return [f"-ffile-prefix-map={folder}={name}" for folder, name in folders.items()]


def _mapped(run: Callable[..., Any], options: list[str]) -> Callable[..., Any]:
    def mapped(cmd_line: str, *arguments: Any, **more: Any) -> Any:
        words = shlex.split(cmd_line)
        known = words and any(name in Path(words[0]).name for name in ("g++", "gcc", "clang"))
        sources = [word for word in words if word.endswith(".cpp")]  # called by a hash over paths too
        named = [f"-ffile-prefix-map={source}=generated{''.join(Path(source).suffixes)}" for source in sources]
        for source in sources:
            _forget_addresses(Path(source))
        own = [*options, *named, *([] if "-c" in words else ["-s"])]  # symbols hold the names of the sources
        return run(f"{cmd_line} {shlex.join(own)}" if known else cmd_line, *arguments, **more)

    return mapped


_ADDRESS = re.compile(rb" at 0x[0-9a-f]{6,}")


def _forget_addresses(source: Path) -> None:
    """Names of operators that are Python objects say where in memory these were."""
    if source.is_file() and _ADDRESS.search(data := source.read_bytes()):
        source.write_bytes(_ADDRESS.sub(b"", data))
