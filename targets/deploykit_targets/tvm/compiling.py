"""The compiler's process as its parent sees it: started early, so that its import runs beside the lowering."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deploykit.contract.errors import ConversionError
from deploykit.places.process import ending, from_outside, start_module, time_limit
from deploykit_targets.tvm import compile_child

if TYPE_CHECKING:
    from deploykit_targets.tvm.processor import Processor

_TIMEOUT_S = 3600.0


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
        limit = time_limit(_TIMEOUT_S)
        self._process = start_module(
            compile_child, self._folder, what="TVM's compiler", error=ConversionError, timeout_s=limit
        )
        return self

    def compile(self, module: Any, processor: Processor) -> Compiled:
        """Compile the functions of a `tvm.IRModule`.

        Raises:
            ConversionError: TVM refused, or LLVM ended the process; the message has what it said last.
        """
        import tvm

        folder = self._folder
        try:
            (folder / compile_child.MODULE).write_text(tvm.ir.save_json(module), encoding="utf-8")
            (folder / compile_child.TARGET).write_text(json.dumps(processor.target), encoding="utf-8")
            self._process.send(b"go\n")
            code = self._process.finish()
            log = self._process.log.replace(str(folder), "<folder>")
            if code:
                raise _refused(folder, code, processor, log)
            assembly = (folder / compile_child.ASSEMBLY).read_text(encoding="utf-8")
            return Compiled((folder / compile_child.OBJECT).read_bytes(), assembly, log)
        except OSError as error:
            message = f"the temporary folder of TVM's compiler cannot be used: {error}"
            raise ConversionError(message, hint="try again; is something cleaning up, or the disk full?") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.close()
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
    if from_outside(code):
        return ConversionError(f"TVM's compiler for {processor.mcpu} {ending(code)}", hint="free memory, or try again")
    end = f"signal {-code}" if code < 0 else f"exit code {code}"
    lines = [line for line in log.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("LLVM ERROR")] or lines[-3:]
    return ConversionError(
        f"TVM's compiler for {processor.mcpu} ended with {end}: {' '.join(told)[:500] or 'it said nothing'}",
        hint="this is a defect of TVM or of deploykit's kernels; please report it with the model's operators",
    )
