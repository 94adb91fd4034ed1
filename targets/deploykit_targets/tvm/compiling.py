"""The compiler's process as its parent sees it: started early, so that its import runs beside the lowering."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
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
    """One process for the modules of a library; a context manager. It compiles one while the next is made here."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="deploykit-tvm-")
        self._folder = Path(self._temporary.name)
        self._submitted: list[Processor] = []
        limit = time_limit(_TIMEOUT_S)
        self._process = start_module(
            compile_child, self._folder, what="TVM's compiler", error=ConversionError, timeout_s=limit
        )
        return self

    def submit(self, module: Any, processor: Processor) -> None:
        """Let it compile the functions of a `tvm.IRModule`, after those that it has already."""
        import tvm

        folder, number = self._folder, len(self._submitted)
        self._submitted.append(processor)
        with _folder_errors():
            (folder / compile_child.MODULE.format(number)).write_text(tvm.ir.save_json(module), encoding="utf-8")
            (folder / compile_child.TARGET.format(number)).write_text(json.dumps(processor.target), encoding="utf-8")
        self._process.send(f"{number}\n".encode())

    def results(self) -> list[Compiled]:
        """What became of all that was submitted, in that order; the last call.

        Raises:
            ConversionError: TVM refused, or LLVM ended the process; the message has what it said last.
        """
        folder = self._folder
        with _folder_errors():
            code = self._process.finish()
            log = self._process.log.replace(str(folder), "<folder>")
            made = [folder / compile_child.ASSEMBLY.format(number) for number in range(len(self._submitted))]
            if code:
                first = next((p for p, path in zip(self._submitted, made, strict=True) if not path.is_file()), None)
                raise _refused(folder, code, first or self._submitted[-1], log)
            objects = [folder / compile_child.OBJECT.format(number) for number in range(len(self._submitted))]
            pairs = zip(objects, made, strict=True)
            return [Compiled(o.read_bytes(), text.read_text(encoding="utf-8"), log) for o, text in pairs]

    def compile(self, module: Any, processor: Processor) -> Compiled:
        """Compile one module; see `submit` and `results`."""
        self.submit(module, processor)
        return self.results()[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.close()
        self._temporary.cleanup()


@contextlib.contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the temporary folder of TVM's compiler cannot be used: {error}"
        raise ConversionError(message, hint="try again; is something cleaning up, or the disk full?") from error


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
