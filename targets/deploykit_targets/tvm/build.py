"""Kernels and program -> a library, and for boards a program, that need nothing of TVM.

TVM's LLVM compiles the kernels to an object file; the C compiler of the architecture compiles the executor
(`runtime/`) and links both. A library may have several variants, each with a program and kernels for an instruction
set, over one block of constants: the executor takes the best that the CPU has. The same inputs give the same bytes.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from deploykit.artifact.storage import write_file
from deploykit.contract.devices import Device
from deploykit.contract.errors import ArtifactError, ConversionError
from deploykit.contract.optional import SystemTool
from deploykit.contract.reading import read_json
from deploykit.contract.tensors import TensorSpec
from deploykit.places.frames import VERSION
from deploykit_targets.tvm.compiling import Compiled, compile_kernels
from deploykit_targets.tvm.processor import Processor, processor_of
from deploykit_targets.tvm.program import Program, Region
from deploykit_targets.tvm.runtime.features import needed_features
from deploykit_targets.tvm.runtime.table import heads_source, index_source, table_source
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
class Variant:
    """A program whose kernels are compiled for one processor."""

    processor: Processor
    program: Program
    kernels: Compiled


@dataclass(frozen=True)
class VariantFacts:
    """What the manifest has of a variant.

    Attributes:
        isa: the name of its kernels' instruction set, which is its name in the library.
        needs: CPU features without which it is not taken, LLVM's spelling.
        object_bytes: the size of its compiled kernels.
        constant_bytes: the bytes of constants that it reads, most of them together with the other variants.
        sqnr_db: the SQNR of its outputs against those of the best variant that ran at export, 200 where they are equal;
            None where that machine could not run it.
    """

    isa: str
    needs: tuple[str, ...]
    object_bytes: int
    constant_bytes: int
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Library:
    """What was built.

    Attributes:
        processor: the processor that it is for; of several, the plainest.
        needs: CPU features that are checked when it is opened, LLVM's spelling.
        emulators: QEMU's names of its CPU, best first.
        files: bytes by name of the files that running needs: nothing else has to be on the device.
        assembly: the assembly of the kernels, for `disassemble`.
        log: what the compiler printed.
        variants: best first, where there are several.
    """

    processor: Processor
    needs: tuple[str, ...]
    emulators: tuple[str, ...]
    files: dict[str, int]
    assembly: str
    log: str
    variants: tuple[VariantFacts, ...] = ()

    @property
    def metadata(self) -> dict[str, Any]:
        """The facts for the manifest, under `METADATA`."""
        processor = msgspec.to_builtins(self.processor)
        facts: dict[str, Any] = {
            "arch": self.processor.arch,
            "needs": list(self.needs),
            "emulators": list(self.emulators),
        }
        facts |= {"protocol": VERSION} if RUNNER in self.files else {}
        facts |= {"runtime_files": dict(self.files)}
        facts |= {"variants": msgspec.to_builtins(self.variants)} if self.variants else {}
        return {**processor, **facts}


def build_library(
    module: Any,
    program: Program,
    constants: bytes,
    device: Device,
    folder: Path,
    *,
    processor: Processor | None = None,
) -> Library:
    """Compile kernels for a device, or for this machine where it is one of several, and link them; see `link_library`.

    Args:
        module: `tvm.IRModule` of TIR functions whose global symbols are those of the program's steps.
        program: what to call.
        constants: the constants of `program.constant_bytes`.
        device: the device of `devices.toml`.
        folder: takes the files.
        processor: what to compile for, by default what the device's table says.
    Raises:
        MissingDependencyError: the C compiler of the architecture is not installed.
        ConversionError: TVM or the compiler refused, or program and constants do not fit each other.
    """
    if len(constants) != program.constant_bytes:
        raise ConversionError(f"tvm: {len(constants)} bytes of constants, the program has {program.constant_bytes}")
    processor = processor or processor_of(device)
    compiler_for(processor.arch).find()  # before minutes are spent
    return link_library([Variant(processor, program, compile_kernels(module, processor))], constants, device, folder)


def link_library(variants: Sequence[Variant], constants: bytes, device: Device, folder: Path) -> Library:
    """Write `model.so`, `constants.bin`, `program.json` and, for Arm, the program `run` into a folder.

    Args:
        variants: best first; their symbols differ.
        constants: the constants that all of them read.
        device: the device of `devices.toml`.
        folder: takes the files.
    Raises:
        MissingDependencyError, ConversionError: as `build_library`.
    """
    plainest = variants[-1]
    _check_alike([variant.program for variant in variants])
    compiler = compiler_for(plainest.processor.arch)
    needs = [needed_features(variant.processor.target) for variant in variants]
    programs = [replace(variant.program, constant_bytes=len(constants)) for variant in variants]
    with tempfile.TemporaryDirectory() as scratch:
        for variant, program, need in zip(variants, programs, needs, strict=True):
            name = variant.processor.isa
            Path(scratch, f"{name}.o").write_bytes(variant.kernels.object_code)
            Path(scratch, f"{name}.c").write_text(table_source(program, need, name), encoding="utf-8")
        names = [variant.processor.isa for variant in variants]
        Path(scratch, "programs.c").write_text(index_source(names), encoding="utf-8")
        made = [Path(scratch, "programs.c"), *(Path(scratch, f"{name}.{kind}") for name in names for kind in "co")]
        _link(compiler, [*_LIBRARY, f"-Wl,--version-script={_SOURCES / 'exports.map'}"], folder / LIBRARY, made)
        if plainest.processor.arch == "aarch64":
            Path(scratch, "heads.c").write_text(heads_source(plainest.program), encoding="utf-8")
            _link(compiler, _RUNNER, folder / RUNNER, [_SOURCES / "run.c", Path(scratch, "heads.c"), *made])
    write_file(folder / CONSTANTS, constants)
    for name, program in zip(names, programs, strict=True):
        data = msgspec.json.format(msgspec.json.encode(program)) + b"\n"
        write_file(folder / (PROGRAM if name == names[-1] else program_file(name)), data)
    written = (LIBRARY, RUNNER, CONSTANTS)
    files = {name: (folder / name).stat().st_size for name in written if (folder / name).is_file()}
    facts = tuple(map(_facts, variants, needs)) if len(variants) > 1 else ()
    emulators, kernels = tuple(device.extra.get("emulators", ())), plainest.kernels
    return Library(plainest.processor, needs[-1], emulators, files, kernels.assembly, kernels.log, facts)


def _check_alike(programs: Sequence[Program]) -> None:
    """One program for boards, and one reader of its times, serve all variants of a library."""
    seen = [(p.inputs, p.outputs, [step.node for step in p.steps]) for p in programs]
    shapes = [([(x.name, x.dtype, x.shape) for x in (*i, *o)], nodes) for i, o, nodes in seen]
    if any(shape != shapes[0] for shape in shapes):
        raise ConversionError("tvm: the variants of a library differ in their inputs, outputs or steps")


def _facts(variant: Variant, needs: tuple[str, ...]) -> VariantFacts:
    operands = {operand for step in variant.program.steps for operand in step.operands}
    read = {o.offset: o.elements * np.dtype(o.dtype).itemsize for o in operands if o.region is Region.CONSTANTS}
    return VariantFacts(variant.processor.isa, needs, len(variant.kernels.object_code), sum(read.values()))


def program_file(variant: str) -> str:
    """Name of the file with the program of a variant, but for the plainest, which is in `PROGRAM`."""
    return f"program.{variant}.json"


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
    variants: tuple[VariantFacts, ...] = ()


def recorded(artifact: StoredArtifact) -> Recorded:
    """See `Manifest.recorded`."""
    return artifact.manifest.recorded(Recorded, METADATA)


def _link(compiler: SystemTool, options: Sequence[str], output: Path, more: Sequence[Path]) -> None:
    own = [*(str(_SOURCES / name) for name in ("executor.c", "pool.c", "cpu.c")), *map(str, more)]
    command = [compiler.find(), *_COMPILE, f"-I{_SOURCES}", *options, "-o", str(output), *own]
    command += ["-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConversionError(f"{compiler.command} cannot be run: {error}") from error
    if done.returncode:
        raise ConversionError(f"{compiler.command} cannot link {output.name}: {done.stderr[-2000:]}")
