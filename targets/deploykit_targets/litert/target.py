"""The LiteRT plugin: capabilities, options, and the hooks that its siblings in this folder fill."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Precision
from deploykit.contract.request import of_precisions
from deploykit.contract.requirements import Requirements
from deploykit.judge.profiling import DEFAULT_EFFORT, Effort, Percentiles, Profile, measure_interleaved
from deploykit.places.first import Risk
from deploykit.plugin.target import Capabilities, Payload, Simulation, Target

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit.contract.session import Session
    from deploykit_calibration.prepared import Prepared


_PROFILED_THREADS = (1, 2)  # a phone's app gets one or two fast cores


@dataclass(frozen=True)
class Operators:
    """What is read of the metadata `file`: how many operators of each kind it has."""

    operators: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LiteRTOptions:
    """Options of the LiteRT toolchain.

    Attributes:
        layout: `nhwc` makes the file take and give images (rank 4) with channels last, as phone code has them.
        io: `int8` makes the file of a static int8 model take and give int8; scale and zero-point are in the manifest.
        kernels: what sessions run with: `xnnpack`, LiteRT's own `builtin` kernels, or the slow `reference` ones.
        name, description: the name and description of the model, in the file's metadata; the description says the
            precision where it is empty.
        mean, std: what the app does to pixels before it runs the file, (pixel - mean) / std; one number, or one for
            each channel. They change nothing in the model; tools read them in the file's metadata.

    Sessions of deploykit take and give what the model does whatever the file's layout and types are; the file's own
    are recorded in the manifest under `metadata.file`.
    """

    layout: Literal["nchw", "nhwc"] = "nchw"
    io: Literal["float", "int8"] = of_precisions("float", Precision.INT8)
    kernels: Literal["xnnpack", "builtin", "reference"] = "xnnpack"
    name: str = "model"
    description: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class LiteRTTarget(Target):
    """Phones and other arm64 devices through LiteRT."""

    name: ClassVar[str] = "litert"
    options_type: ClassVar[type[LiteRTOptions]] = LiteRTOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="Android phones and arm64 boards through LiteRT (.tflite)",
            precisions=(
                Precision.INT8,
                Precision.FP32,
                Precision.FP16,
                Precision.INT8_DYNAMIC,
                Precision.INT16X8,
                Precision.INT8_WEIGHT_ONLY,
                Precision.INT4_WEIGHT_ONLY,
            ),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="litert",
            runtime_extra="litert-runtime",
            export_requires=(
                Requirement("torch"),
                Requirement("litert_torch", "litert-torch"),
                Requirement("ai_edge_quantizer", "ai-edge-quantizer"),
                Requirement("ai_edge_litert", "ai-edge-litert"),
            ),
            runtime_requires=(_Runtime("ai_edge_litert", "ai-edge-litert"),),
            dynamic_batch=False,
        )

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`; a file runs on every architecture, and how fast is the processor's business."""
        return Requirements(packages={"ai-edge-litert": ">=2.3"})

    def risk(self, artifact: StoredArtifact) -> Risk:
        """See `Target.risk`: LiteRT aborted on one of 200 altered files (`benchmarks/hostile_payloads.py`)."""
        return Risk.READER

    def profile(
        self,
        artifact: StoredArtifact,
        *,
        baseline: tuple[str, StoredArtifact] | None = None,
        effort: Effort = DEFAULT_EFFORT,
    ) -> Profile:
        """See `Target.profile`; with latency at 1 and 2 threads, and the operators of the file."""
        found = super().profile(artifact, baseline=baseline, effort=effort)
        feeds = artifact.golden().inputs[0]
        counts = [count for count in _PROFILED_THREADS if count <= self.host_of(artifact).cores]
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self.open(artifact, threads=count)) for count in counts]
            times, _ = measure_interleaved(sessions, feeds, replace(effort, seconds=effort.seconds / 2))
        by_threads = {str(count): Percentiles.of(values) for count, values in zip(counts, times, strict=True)}
        operators = artifact.manifest.recorded(Operators, "file").operators
        return replace(found, latency_by_threads_ms=by_threads, operators=operators)

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.litert.scheme import scheme_of

        return scheme_of(request, captured)

    def simulate(self, prepared: Prepared) -> Simulation | None:
        """See `Target.simulate`: averages are of integers."""
        if prepared.precision is not Precision.INT8 or not prepared.rounds:
            return super().simulate(prepared)
        from deploykit_calibration.simulate import SimulatedModel
        from deploykit_targets.litert.means import averages_of_integers

        exact = SimulatedModel(prepared.captured, prepared.placed)
        averages_of_integers(exact.graph_module)
        return exact

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        from deploykit_targets.litert.convert import convert

        return convert(prepared, folder)

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        from deploykit_targets.litert.session import LiteRTSession

        return LiteRTSession(artifact, threads)


class _Runtime(Requirement):
    """LiteRT's runtime, or its predecessor that some boards have."""

    @property
    def installed(self) -> bool:
        """Whether either could be imported."""
        return super().installed or Requirement("tflite_runtime").installed
