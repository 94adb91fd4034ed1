"""The Core ML plugin: capabilities, options, and the hooks that its siblings in this folder fill.

On macOS artifacts run in Core ML (`device`); elsewhere the evaluator of ML Programs in this folder runs the same file
(`reference`): it proves graph, weights and quantization, not how the Neural Engine rounds.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.errors import MissingDependencyError, UsageError
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.request import of_precisions
from deploykit.contract.requirements import Missing, Preflight, Requirements, check, fits
from deploykit.judge.profiling import DEFAULT_EFFORT, Effort, Profile
from deploykit.plugin.target import Capabilities, Payload, Simulation, Target, Validation
from deploykit_targets.coreml.units import estimated

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit.contract.session import Session
    from deploykit.judge.parity import ParityReport
    from deploykit_calibration.prepared import Prepared

EVALUATED_NOTE = "evaluated in PyTorch from the written model; not run by Core ML, and not on the Neural Engine"


_COMPRESSED = (
    Precision.INT8_WEIGHT_ONLY,
    Precision.INT4_WEIGHT_ONLY,
    Precision.INT6_PALETTE,
    Precision.INT4_PALETTE,
)

BATCH_SIZES = "batch_sizes"
"""Key of an artifact's metadata: the batch sizes, of those that a profile tries, which its shapes allow."""


@dataclass(frozen=True)
class CoreMLOptions:
    """Options of the Core ML toolchain.

    Attributes:
        form: `mlprogram` (iOS 16 and later), or `neuralnetwork` for older systems (iOS 13 or 14; no int8 activations).
        compute_units: what Core ML may use when the artifact is opened on macOS.
        deployment_target: oldest op set to convert to; "" for the device's own. A precision may raise it.
        image_input: name of the input (1 x channels x height x width) that apps feed with an image; "" for none.
        image_color: order of its planes.
        image_scale, image_bias: input = image_scale x pixel (0 to 255) + image_bias; one bias, or one per channel.
        class_labels: the class labels of the only output, which becomes a label and its probabilities in the app.
        max_size: largest size of a dynamic axis that was captured without an upper bound.
        enumerated_shapes: input name -> the only shapes it takes; their axes must be captured as dynamic.
        block_size: weights per scale, in `int4-weight-only`.
        weight_threshold: weights with fewer elements are not compressed.
    """

    form: Literal["mlprogram", "neuralnetwork"] = "mlprogram"
    compute_units: Literal["all", "cpu-only", "cpu-and-gpu", "cpu-and-neural-engine"] = "all"
    deployment_target: Literal["", "iOS16", "iOS17", "iOS18"] = ""
    image_input: str = ""
    image_color: Literal["RGB", "BGR", "GRAYSCALE"] = "RGB"
    image_scale: float = 1.0
    image_bias: tuple[float, ...] = (0.0,)
    class_labels: tuple[str, ...] = ()
    max_size: int = 32
    enumerated_shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    block_size: int = of_precisions(32, Precision.INT4_WEIGHT_ONLY)
    weight_threshold: int = of_precisions(64, *_COMPRESSED)


class CoreMLTarget(Target):
    """Apple devices through Core ML."""

    name: ClassVar[str] = "coreml"
    options_type: ClassVar[type[CoreMLOptions]] = CoreMLOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="Apple devices through Core ML",
            precisions=(
                Precision.FP16,
                Precision.INT8,
                Precision.INT8_WEIGHT_ONLY,
                Precision.INT6_PALETTE,
                Precision.INT4_PALETTE,
                Precision.INT4_WEIGHT_ONLY,
                Precision.FP32,
            ),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="coreml",
            runtime_extra="coreml-runtime",
            export_requires=(Requirement("torch"), Requirement("coremltools")),
            runtime_requires=(Requirement("coremltools"),),
            evidence=Evidence.DEVICE if has_core_ml() else Evidence.REFERENCE,
            opens=(".mlpackage", ".mlmodel"),
        )

    def check_installed(self, *, export: bool) -> None:
        """See `Target.check_installed`; without Core ML, running needs PyTorch for the evaluator."""
        super().check_installed(export=export)
        if not export and not has_core_ml() and not Requirement("torch").installed:
            raise MissingDependencyError("torch", extra="coreml", purpose="evaluate ML Programs where Core ML is not")

    def preflight(self, artifact: StoredArtifact) -> Preflight:
        """See `Target.preflight`; where Core ML is not, the evaluator runs the file, and needs no Apple system."""
        if not self.place(artifact).is_here:
            return super().preflight(artifact)
        if has_core_ml():
            found = super().preflight(artifact)
            return replace(found, missing=(*found.missing, *_too_old(self.needs(artifact).os)))
        elsewhere = check(replace(self.needs(artifact), os=()), self.host())
        return replace(elsewhere, notes=(EVALUATED_NOTE,), native=False)

    def _by_core_ml(self, artifact: StoredArtifact) -> bool:
        """Whether Apple's own runtime runs it: here, or on a board that is a Mac."""
        return has_core_ml() if self.place(artifact).is_here else self.evidence(artifact) is Evidence.DEVICE

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`."""
        return Requirements(os=("iOS", "macOS"), packages={"coremltools": ">=9.0"})

    def validate(self, artifact: StoredArtifact, validation: Validation, session: Session) -> ParityReport:
        """See `Target.validate`; the report says what ran the artifact."""
        report = super().validate(artifact, validation, session)
        note = _mac_note(artifact) if self._by_core_ml(artifact) else EVALUATED_NOTE
        return report if note in report.notes else replace(report, notes=(*report.notes, note))

    def profile(
        self,
        artifact: StoredArtifact,
        *,
        baseline: tuple[str, StoredArtifact] | None = None,
        effort: Effort = DEFAULT_EFFORT,
    ) -> Profile:
        """Measured on macOS; elsewhere an estimate, or the evaluator's own time where no rates are published."""
        device = self.capabilities().devices[artifact.manifest.device]
        facts = _facts(artifact)
        recorded = artifact.manifest.recorded(_BatchSizes).batch_sizes
        allowed = effort.batch_sizes if recorded is None else recorded
        effort = replace(effort, batch_sizes=tuple(size for size in effort.batch_sizes if size in allowed))
        if self._by_core_ml(artifact):
            measured = super().profile(artifact, baseline=baseline, effort=effort)
            return replace(measured, notes=(*measured.notes, _mac_note(artifact), *facts))
        found = estimated(artifact, device, baseline)
        if found is not None:
            return replace(found, notes=(*found.notes, *facts))
        measured = super().profile(artifact, baseline=baseline, effort=effort)
        said = f"time of the evaluator in PyTorch on this machine; it says nothing of {device.name}"
        return replace(measured, notes=(*measured.notes, said, *facts))

    def check_options(self, options: CoreMLOptions, device: Device) -> None:
        """See `Target.check_options`: what is said of an image is of an input that is named."""
        plain = type(options)()
        of_images = ("image_color", "image_scale", "image_bias")
        said = [name for name in of_images if getattr(options, name) != getattr(plain, name)]
        if said and not options.image_input:
            message = f"{said[0]} has no effect: no input is fed with an image"
            raise UsageError(message, hint="name the input, image_input=..., or leave it out")

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """See `Target.adapt`: recurrent layers are written out where they are quantized."""
        from deploykit_targets._schemes.recurrent import written_out

        return written_out(captured, request)

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.coreml.scheme import scheme_of

        return scheme_of(request, captured)

    def simulate(self, prepared: Prepared) -> Simulation | None:
        """See `Target.simulate`: what is not an integer is float16."""
        if not prepared.scheme.quantizes:
            return None
        from deploykit_targets._float16 import plan_float16, simulated
        from deploykit_targets.coreml.sums import sum_in_units_of_a_term

        found = simulated(prepared.captured, prepared.placed, plan_float16(prepared).kept)
        sum_in_units_of_a_term(found.graph_module)
        return found

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        from deploykit_targets.coreml.convert import convert

        converted, needs = convert(prepared, folder), self.requirements(prepared.device, prepared.precision)
        facts = converted.metadata
        systems = tuple(str(facts["os_floor"]).split(", "))
        opset = {"coreml": int(facts["specification_version"])}
        return replace(converted, requirements=replace(needs, os=systems, opset=opset))

    def _open_file(self, path: Path, threads: int) -> Session:
        from deploykit_targets.coreml.session import ProgramSession

        return ProgramSession(path, threads)

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        from deploykit_targets.coreml.session import open_session

        return open_session(artifact, threads, native=has_core_ml())


def has_core_ml() -> bool:
    """Whether this machine has Apple's own runtime."""
    return sys.platform == "darwin"


def _too_old(systems: tuple[str, ...]) -> Iterator[Missing]:
    """What to say of a Mac whose system is older than the program's op set."""
    floor = next((system.split()[1] for system in systems if system.startswith("macOS ")), "")
    here = platform.mac_ver()[0]
    if floor and here and not fits(here, f">={floor}"):
        lower = 'options={"deployment_target": ...} of an older system, where the precision has one'
        yield Missing(f"it needs macOS {floor}, and this is macOS {here}", f"update macOS, or export with {lower}")


def _mac_note(artifact: StoredArtifact) -> str:
    units = artifact.manifest.chosen(CoreMLOptions).compute_units
    return f"run by Core ML on this Mac (compute units: {units}), for {artifact.manifest.device}"


@dataclass(frozen=True)
class _BatchSizes:
    batch_sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Facts:
    ops: dict[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    activation_bytes: int = 0
    os_floor: str = "an unknown system"


def _facts(artifact: StoredArtifact) -> tuple[str, ...]:
    """What a program costs whatever runs it: ops, multiply-accumulates, bytes, oldest system."""
    known = artifact.manifest.recorded(_Facts)
    ops = ", ".join(f"{count} {op}" for op, count in known.ops.items())
    macs = sum(artifact.achieved.macs.values())
    weights, moved = known.weight_bytes, known.activation_bytes
    return (
        f"ops: {ops}",
        f"{macs} multiply-accumulates, {weights} bytes of weights, {moved} bytes of activations read and written",
        f"runs on {known.os_floor} and later",
    )
