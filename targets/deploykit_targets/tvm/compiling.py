"""The compiler's process as its parent sees it: started early, so that its import runs beside the lowering."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deploykit.child import start_module
from deploykit.errors import ConversionError
from deploykit_targets.tvm import compile_child

if TYPE_CHECKING:
    from deploykit_targets.tvm.processor import Processor


@dataclass(frozen=True)
class Compiled:
    """Machine code of kernels.

    Attributes:
        object_code: an object file for the linker.
        assembly: the same as text.
        log: what TVM and LLVM printed.
    """

    object_code: bytes
    assembly: str
    log: str


class Compiler:
    """One process for one module; a context manager."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="deploykit-tvm-")
        self._folder = Path(self._temporary.name)
        with (self._folder / compile_child.LOG).open("wb") as log:
            self._process = start_module(compile_child, self._folder, log=log)
        return self

    def compile(self, module: Any, processor: Processor) -> Compiled:
        """Compile the functions of a `tvm.IRModule`.

        Raises:
            ConversionError: TVM refused, or LLVM ended the process; the message has what it said last.
        """
        import tvm

        folder = self._folder
        (folder / compile_child.MODULE).write_text(tvm.ir.save_json(module), encoding="utf-8")
        (folder / compile_child.TARGET).write_text(json.dumps(processor.target), encoding="utf-8")
        self._process.communicate(b"go\n")
        log = (folder / compile_child.LOG).read_text(encoding="utf-8", errors="replace")
        log = log.replace(str(folder), "<folder>")
        if self._process.returncode:
            raise _refused(folder, self._process.returncode, processor, log)
        assembly = (folder / compile_child.ASSEMBLY).read_text(encoding="utf-8")
        return Compiled((folder / compile_child.OBJECT).read_bytes(), assembly, log)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._temporary.cleanup()


def compile_kernels(module: Any, processor: Processor) -> Compiled:
    """Compile in a process that is started now; see `Compiler.compile`."""
    with Compiler() as compiler:
        return compiler.compile(module, processor)


def _refused(folder: Path, code: int, processor: Processor, log: str) -> ConversionError:
    reason = folder / compile_child.ERROR
    if reason.is_file():
        words = reason.read_text(encoding="utf-8")
        return ConversionError(f"TVM cannot compile the kernels for {processor.mcpu}: {words}")
    end = f"signal {-code}" if code < 0 else f"exit code {code}"
    lines = [line for line in log.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("LLVM ERROR")] or lines[-3:]
    return ConversionError(
        f"TVM's compiler for {processor.mcpu} ended with {end}: {' '.join(told)[:500] or 'it said nothing'}",
        hint="this is a defect of TVM or of deploykit's kernels; please report it with the model's operators",
    )
