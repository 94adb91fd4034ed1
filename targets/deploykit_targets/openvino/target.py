"""The OpenVINO plugin: capabilities, and the hooks that its siblings in this folder fill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Precision
from deploykit.contract.requirements import VNNI, BestWith, Requirements
from deploykit.plugin.target import Capabilities, Payload, Simulation, Target
from deploykit_targets._onnx.vnni import has_wide_weights, needs_exact

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit.contract.session import Session
    from deploykit_calibration.prepared import Prepared

_IN_FLOAT = BestWith(
    VNNI,
    without="OpenVINO's 8-bit sums would saturate, so the same quantized graph is computed in float32: right, and no"
    " faster than fp32",
    same_arithmetic=False,
    instead="x86-cpu-avx2:openvino",
)


class OpenVinoTarget(Target):
    """x86 CPUs through OpenVINO."""

    name: ClassVar[str] = "openvino"

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="x86 CPUs through OpenVINO",
            precisions=(Precision.INT8, Precision.FP32, Precision.BF16, Precision.FP16),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="openvino",
            runtime_extra="openvino-runtime",
            export_requires=(Requirement("torch"), Requirement("onnx"), Requirement("openvino")),
            runtime_requires=(Requirement("openvino"),),
        )

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`."""
        wide = precision is Precision.INT8 and has_wide_weights(device)
        return Requirements(packages={"openvino": ">=2024.6"}, best_with=(_IN_FLOAT,) if wide else ())

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """See `Target.adapt`: recurrent layers are written out where they are quantized."""
        from deploykit_targets._schemes.recurrent import written_out

        return written_out(captured, request)

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.openvino.scheme import scheme_of

        return scheme_of(request, captured)

    def simulate(self, prepared: Prepared) -> Simulation | None:
        """See `Target.simulate`: convolutions round behind the sums that they are fused to."""
        in_float = has_wide_weights(prepared.device) and needs_exact(self.host())
        if in_float or not prepared.rounds:
            return super().simulate(prepared)  # computed in float32 here, where nothing is fused
        from deploykit_calibration.simulate import SimulatedModel
        from deploykit_targets.openvino.sums import clamp_before_sums

        found = SimulatedModel(prepared.captured, prepared.placed)
        clamp_before_sums(found.graph_module)
        return found

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        from deploykit_targets.openvino.convert import convert, opset_of

        needs, converted = self.requirements(prepared.device, prepared.precision), convert(prepared, folder)
        opset = {"openvino": opset_of(folder / converted.entry)}
        return replace(converted, requirements=replace(needs, opset=opset))

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        from deploykit_targets.openvino.session import OpenVinoSession

        return OpenVinoSession(artifact, threads, in_float=not self.preflight(artifact).native)
