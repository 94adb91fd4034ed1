"""`BuiltOnDevice`: what toolchains share whose artifacts are finished on the GPU that runs them.

Before the build, parity comes from ONNX Runtime on the CPU (`reference`) and the profile from the device table
(`estimate`), and both say so; after it, both come from the device.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from deploykit.artifact.storage import sha256_of
from deploykit.contract.devices import Device
from deploykit.contract.errors import DeviceError, MissingDependencyError, UsageError
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.reading import MAX_JSON_BYTES, read_bytes
from deploykit.contract.requirements import Missing, Preflight, Requirements
from deploykit.judge.profiling import DEFAULT_EFFORT, Effort, Profile
from deploykit.plugin.estimate import estimate
from deploykit.plugin.target import Payload, Simulation, Target, Validation

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.findings import Finding
    from deploykit.contract.request import Request
    from deploykit.contract.session import Session
    from deploykit.contract.tensors import TensorSpec
    from deploykit.judge.parity import ParityReport
    from deploykit_calibration.prepared import Prepared

BOARD = "board.py"
_COMPILED_SUFFIXES = (".engine", ".mxr")
COMPILED = "compiled"
"""Key of the manifest's metadata under which the word of the vendor's compiler is kept."""
UNBUILT_NOTE = "statically checked and numerically referenced, not compiled or run on the device"


class BuiltOnDevice(Target):
    """Base of such toolchains.

    Attributes:
        program: file name of the build program in an artifact.
    """

    program: ClassVar[str]

    @abstractmethod
    def interpreter(self, artifact: StoredArtifact | None = None) -> str | None:
        """A Python on this machine that has the vendor's bindings; None where there is none.

        Args:
            artifact: a built one, where what it runs in depends on its build.
        """

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """See `Target.adapt`: recurrent layers are written out where they are quantized."""
        from deploykit_targets._schemes.recurrent import written_out

        return written_out(captured, request)

    def check_installed(self, *, export: bool) -> None:
        """See `Target.check_installed`; boards have the bindings in the system's Python, which counts too."""
        if export or self.interpreter() is None:
            super().check_installed(export=export)

    def check_runnable(self, artifact: StoredArtifact) -> None:
        """See `Target.check_runnable`; a build of one runtime does not need the packages of another."""
        if self.interpreter(artifact) is None:
            super().check_installed(export=False)

    def check_options(self, options: Any, device: Device) -> None:
        """See `Target.check_options`: what all build programs have, `max_batch` and the form of `shapes`."""
        at_least_1("max_batch", options.max_batch)
        check_shapes(options.shapes)

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`."""
        del precision
        return Requirements(gpu=device.arch)

    def preflight(self, artifact: StoredArtifact) -> Preflight:
        """See `Target.preflight`; the GPU is asked by our own copy of the program, not by that of the artifact."""
        found = super().preflight(artifact)
        if artifact.manifest.build is not None or not found.ok or not self.place(artifact).is_here:
            return found
        return replace(found, missing=tuple(self._other_gpu(artifact)))

    def _other_gpu(self, artifact: StoredArtifact) -> Iterator[Missing]:
        """What to say where the GPU is not here, or is not the one that the program was built for."""
        from deploykit_targets._on_device.host import run_build_program

        wanted, python = self.needs(artifact).gpu, self.interpreter(artifact)
        try:
            with self._own_copy(artifact) as program:
                here = run_build_program(program, ["--probe"], python=python, toolchain=self.name)
        except (DeviceError, MissingDependencyError) as error:
            yield Missing(f"it needs a GPU of {wanted}: {error.message}", error.hint or "run it where the GPU is")
            return
        portable = artifact.manifest.options.get("hardware", "none") != "none"
        if here["arch"] != wanted and not portable:
            again = f"build the portable artifact on this machine, exported for a device of {here['arch']}"
            yield Missing(f"it is built for {wanted}, and the GPU here is {here['arch']}", again)

    def own_program(self) -> Path:
        """The program of this deploykit, which artifacts get a copy of; beside the plugin, unless it is shared."""
        return Path(inspect.getfile(type(self))).with_name(self.program)

    @contextlib.contextmanager
    def _own_copy(self, artifact: StoredArtifact) -> Iterator[Path]:
        """The program of this deploykit, beside the artifact's `blueprint.json`, which says what it runs in."""
        from deploykit_targets._on_device import board
        from deploykit_targets._on_device.portable import BLUEPRINT

        with tempfile.TemporaryDirectory(prefix="deploykit-program-") as folder:
            for source in (self.own_program(), Path(str(board.__file__))):
                shutil.copyfile(source, Path(folder, source.name))
            if (artifact.path / BLUEPRINT).is_file():
                Path(folder, BLUEPRINT).write_bytes(read_bytes(artifact.path / BLUEPRINT, limit=MAX_JSON_BYTES))
            yield Path(folder, self.program)

    def native_code(self, artifact: StoredArtifact) -> str:
        """See `Target.native_code`: what the vendor's library made is kernels for the GPU."""
        return "" if artifact.manifest.build is not None else f"the compiled program in {artifact.manifest.entry}"

    def build_code(self, artifact: StoredArtifact) -> str:
        """See `Target.build_code`: the artifact's build program, unless it is byte for byte that of this deploykit."""
        from deploykit_targets._on_device import board

        own = {self.program: self.own_program(), BOARD: Path(str(board.__file__))}
        listed = {entry.path: entry.sha256 for entry in artifact.manifest.files}
        foreign = [name for name, source in own.items() if listed.get(name) != sha256_of(source)]
        if foreign:
            return f"its build program ({', '.join(foreign)}), which is not that of this deploykit,"
        compiled = next((name for name in listed if name.endswith(_COMPILED_SUFFIXES)), "")
        return compiled and f"the compiled program in {compiled}"

    def simulate(self, prepared: Prepared) -> Simulation | None:
        """See `Target.simulate`: with float16 between integers where the file has it."""
        from deploykit_targets._onnx.between import simulation_of

        return simulation_of(prepared)

    def evidence(self, artifact: StoredArtifact) -> Evidence:
        """A built artifact runs on its device; another one only in a reference runtime."""
        return Evidence.REFERENCE if artifact.manifest.build else Evidence.DEVICE

    def open_for_parity(self, artifact: StoredArtifact) -> Session:
        """The built program where there is one; else the exact ONNX file in ONNX Runtime on the CPU."""
        if artifact.manifest.build is None:
            return self.open(artifact)
        from deploykit_targets._onnx.external import check_external_data
        from deploykit_targets._onnx.reference import ReferenceSession, reference_model

        check_external_data(artifact)
        model = reference_model(artifact.entry, bfloat16=artifact.manifest.precision is Precision.BF16)
        return ReferenceSession(artifact.inputs, artifact.outputs, model)

    def validate(self, artifact: StoredArtifact, validation: Validation, session: Session) -> ParityReport:
        """See `Target.validate`; before the build, the report says what it does not prove."""
        report = super().validate(artifact, validation, session)
        if artifact.manifest.build is None:
            return report
        return replace(
            report,
            notes=(
                *report.notes,
                unbuilt_note(artifact),
                artifact.manifest.recorded(_Verdict, "lint").verdict,
                *notes_of(artifact),
            ),
        )

    def profile(
        self,
        artifact: StoredArtifact,
        *,
        baseline: tuple[str, StoredArtifact] | None = None,
        effort: Effort = DEFAULT_EFFORT,
    ) -> Profile:
        """Measured on the device where the program is built; else a roofline estimate from the device table."""
        if artifact.manifest.build is not None:
            return estimate(artifact, self.capabilities().devices[artifact.manifest.device], baseline=baseline)
        if not self.place(artifact).is_here:
            return super().profile(artifact, baseline=baseline, effort=effort)
        from deploykit_targets._on_device.session import measure

        for one in (artifact, *(baseline[1:] if baseline else ())):
            self.check_vouched(one)

        with self._own_copy(artifact) as program:
            return measure(artifact, program, self.interpreter(artifact), effort, baseline)

    def _lint(self, path: Path) -> tuple[Finding, ...]:
        """See `Target.lint`: any ONNX file, against the toolchain's parser and its explicit quantization."""
        if not Requirement("onnx").installed:
            raise MissingDependencyError("onnx", extra=self.capabilities().export_extra, purpose="check an ONNX file")
        from deploykit_targets._onnx.lint import lint, load_rules

        return lint(path, load_rules(self.name))

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        from deploykit_targets._on_device.session import ProgramSession

        with self._own_copy(artifact) as program:  # which is read when it has answered
            return ProgramSession(artifact, program, self.interpreter(artifact))

    def _build(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload:
        from deploykit_targets._onnx.external import check_external_data

        check_shapes(options.shapes, artifact.inputs)
        artifact.check_unaltered()
        check_external_data(artifact)
        return self._build_here(artifact, folder, options)

    @abstractmethod
    def _build_here(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload: ...


def unbuilt_note(artifact: StoredArtifact) -> str:
    """What is proved of an artifact before its build, and what is not."""
    if not artifact.manifest.metadata.get(COMPILED):
        return UNBUILT_NOTE
    return f"{UNBUILT_NOTE.partition(',')[0]}; {artifact.manifest.recorded(_Compiled, COMPILED).note}"


@dataclass(frozen=True)
class _Compiled:
    note: str


@dataclass(frozen=True)
class _Verdict:
    verdict: str


def notes_of(artifact: StoredArtifact) -> Sequence[str]:
    """What the conversion wants said beside the figures."""
    return artifact.manifest.facts.notes


def at_least_1(name: str, value: int | None) -> None:
    """Refuse a size below 1.

    Raises:
        UsageError: names the option.
    """
    if value is not None and value < 1:
        raise UsageError(f"{name}={value}: it must be 1 or more")


def check_shapes(shapes: Sequence[str], inputs: Sequence[TensorSpec] | None = None) -> None:
    """Refuse what the build program would refuse on the device, or would ignore.

    Args:
        shapes: as in the options: `NAME=MIN:OPT:MAX`.
        inputs: the inputs of the model; None where they are not known yet, and only the form is checked.
    Raises:
        UsageError: malformed, of no input, of an input without dynamic axes, or outside its fixed sizes.
    """
    from deploykit_targets._on_device import board  # needs NumPy, which listing targets must not load

    try:
        if inputs is None:
            for text in shapes:
                board.parse_shape(text)
        else:
            specs = [{"name": spec.name, "shape": list(spec.shape)} for spec in inputs]
            board.given_ranges(specs, shapes)
    except board.BuildError as error:
        raise UsageError(str(error), hint=error.hint or None) from error
