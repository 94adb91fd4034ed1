"""Kernels and program -> a library, and for boards a program, that need nothing of TVM.

TVM's LLVM compiles the kernels to one object file; the C compiler of the architecture compiles the executor
(`runtime/`) and links both. The same inputs give the same bytes.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.artifact.storage import write_file
from deploykit.contract.devices import Device
from deploykit.contract.errors import ArtifactError, ConversionError
from deploykit.contract.optional import SystemTool
from deploykit.contract.reading import read_json
from deploykit.contract.tensors import TensorSpec
from deploykit.places.frames import VERSION
from deploykit_targets.tvm.compiling import Compiled, compile_kernels
from deploykit_targets.tvm.processor import Processor, processor_of
from deploykit_targets.tvm.program import Program
from deploykit_targets.tvm.runtime.features import needed_features
from deploykit_targets.tvm.runtime.table import heads_source, table_source
from deploykit_targets.tvm.tools import compiler_for

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact

LIBRARY, RUNNER, CONSTANTS, PROGRAM = "model.so", "run", "constants.bin", "program.json"
METADATA = "library"
"""Key of the manifest's metadata under which `Library.metadata` stands."""

_SOURCES = Path(__file__).parent / "runtime"
_COMPILE = ("-std=c11", "-O2", "-pthread")
_LIBRARY = ("-shared", "-fPIC", "-fvisibility=hidden", "-Wl,--no-undefined,-z,now,--build-id=none", "-s")
_RUNNER = ("-static", "-Wl,--build-id=none", "-s")
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Library:
    """What was built.

    Attributes:
        processor: that it is for.
        needs: CPU features that are checked when it is opened, LLVM's spelling.
        emulators: QEMU's names of its CPU, best first.
        files: bytes by name of the files that running needs: nothing else has to be on the device.
        assembly: of the kernels, for `disassemble`.
        log: what the compiler printed.
    """

    processor: Processor
    needs: tuple[str, ...]
    emulators: tuple[str, ...]
    files: dict[str, int]
    assembly: str
    log: str

    @property
    def metadata(self) -> dict[str, Any]:
        """For the manifest, under `METADATA`."""
        processor = msgspec.to_builtins(self.processor)
        facts = {"arch": self.processor.arch, "needs": list(self.needs), "emulators": list(self.emulators)}
        spoken = {"protocol": VERSION} if RUNNER in self.files else {}
        return {**processor, **facts, **spoken, "runtime_files": dict(self.files)}


def build_library(
    module: Any,
    program: Program,
    constants: bytes,
    device: Device,
    folder: Path,
    *,
    compile_with: Callable[[Any, Processor], Compiled] = compile_kernels,
) -> Library:
    """Write `model.so`, `constants.bin`, `program.json` and, for Arm, the program `run` into a folder.

    Args:
        module: `tvm.IRModule` of TIR functions whose global symbols are those of the program's steps.
        program: what to call.
        constants: of `program.constant_bytes`.
        device: of `devices.toml`.
        folder: takes the files.
        compile_with: makes machine code of the kernels; a `Compiler` that was started early saves seconds.
    Raises:
        MissingDependencyError: the C compiler of the architecture is not installed.
        ConversionError: TVM or the compiler refused, or program and constants do not fit each other.
    """
    if len(constants) != program.constant_bytes:
        raise ConversionError(f"tvm: {len(constants)} bytes of constants, the program has {program.constant_bytes}")
    processor = processor_of(device)
    compiler = compiler_for(processor.arch)
    compiler.find()  # before minutes are spent
    needs = needed_features(processor.target)
    kernels = compile_with(module, processor)
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "kernels.o").write_bytes(kernels.object_code)
        Path(scratch, "program.c").write_text(table_source(program, needs), encoding="utf-8")
        _link(compiler, scratch, [*_LIBRARY, f"-Wl,--version-script={_SOURCES / 'exports.map'}"], folder / LIBRARY, [])
        if processor.arch == "aarch64":
            Path(scratch, "heads.c").write_text(heads_source(program), encoding="utf-8")
            _link(compiler, scratch, _RUNNER, folder / RUNNER, [_SOURCES / "run.c", Path(scratch, "heads.c")])
    write_file(folder / CONSTANTS, constants)
    write_file(folder / PROGRAM, msgspec.json.format(msgspec.json.encode(program)) + b"\n")
    names = (LIBRARY, RUNNER, CONSTANTS)
    files = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    return Library(processor, needs, tuple(device.extra.get("emulators", ())), files, kernels.assembly, kernels.log)


def read_program(path: Path) -> Program:
    """Read `program.json`.

    Raises:
        ArtifactError: it is damaged, or says what no program can be.
    """
    program = read_json(path, Program, hint="export the model again")
    for port in (*program.inputs, *program.outputs):
        if not TensorSpec(port.name, tuple(port.shape), port.dtype).has_known_dtype or min(port.shape, default=0) < 0:
            raise ArtifactError(f"{path.name}: {port.name} has an impossible type or shape", hint="export again")
    return program


@dataclass(frozen=True)
class Recorded:
    """What is read of `METADATA` in the manifest."""

    arch: str
    isa: str = ""
    emulators: tuple[str, ...] = ()
    runtime_files: dict[str, int] = field(default_factory=dict)
    protocol: int = 0


def recorded(artifact: StoredArtifact) -> Recorded:
    """See `Manifest.recorded`."""
    return artifact.manifest.recorded(Recorded, METADATA)


def _link(compiler: SystemTool, scratch: str, options: Sequence[str], output: Path, more: Sequence[Path]) -> None:
    own = [*(str(_SOURCES / name) for name in ("executor.c", "pool.c", "cpu.c")), *map(str, more)]
    command = [compiler.find(), *_COMPILE, f"-I{_SOURCES}", *options, "-o", str(output), *own]
    command += [f"{scratch}/program.c", f"{scratch}/kernels.o", "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConversionError(f"{compiler.command} cannot be run: {error}") from error
    if done.returncode:
        raise ConversionError(f"{compiler.command} cannot link {output.name}: {done.stderr[-2000:]}")
