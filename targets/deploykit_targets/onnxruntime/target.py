"""The ONNX Runtime plugin: capabilities, options, and the hooks that its siblings in this folder fill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.errors import UsageError
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Precision
from deploykit.contract.request import of_precisions
from deploykit.contract.requirements import VNNI, BestWith, Requirements
from deploykit.plugin.target import Capabilities, Payload, Target
from deploykit_targets._onnx.vnni import has_wide_weights

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit.contract.session import Session
    from deploykit_calibration.prepared import Prepared

_SINCE_1_21 = 22
"""The operator set that ONNX Runtime reads from 1.21 on; older ones all that are tested read."""
_SMALLEST_BLOCK = 16
_EXACT_SUMS = BestWith(
    VNNI,
    without="products of 8 bits are summed in a form that cannot saturate: the same outputs, in 1.3 to 1.5 times the"
    " time of weights of 7 bits",
    same_arithmetic=True,
    instead="x86-cpu-avx2",
)


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """Options of the ONNX Runtime toolchain.

    Attributes:
        opset: version of the ONNX operator set, 18 to 22.
        block_size: weights that share one scale in weight-only precisions; a power of two from 16.
    """

    opset: int = 21
    block_size: int = of_precisions(32, Precision.INT8_WEIGHT_ONLY, Precision.INT4_WEIGHT_ONLY)


class OnnxRuntimeTarget(Target):
    """x86 CPUs through ONNX Runtime."""

    name: ClassVar[str] = "onnxruntime"
    options_type: ClassVar[type[OnnxRuntimeOptions]] = OnnxRuntimeOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="x86 CPUs through ONNX Runtime",
            precisions=(
                Precision.INT8,
                Precision.FP32,
                Precision.FP16,
                Precision.INT8_DYNAMIC,
                Precision.INT8_WEIGHT_ONLY,
                Precision.INT4_WEIGHT_ONLY,
            ),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="onnxruntime",
            runtime_extra="onnxruntime-runtime",
            export_requires=(Requirement("torch"), Requirement("onnx"), Requirement("onnxruntime")),
            runtime_requires=(Requirement("onnxruntime"),),
        )

    def precisions_here(self, device: Device) -> tuple[Precision, ...]:
        """See `Target.precisions_here`: without float16 kernels for x86, fp16 is a size and no arithmetic."""
        return tuple(p for p in super().precisions_here(device) if p is not Precision.FP16)

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """See `Target.requirements`."""
        wide = precision in (Precision.INT8, Precision.INT8_DYNAMIC) and has_wide_weights(device)
        return Requirements(packages={"onnxruntime": ">=1.20"}, best_with=(_EXACT_SUMS,) if wide else ())

    def check_options(self, options: Any, device: Device) -> None:
        """See `Target.check_options`."""
        size = options.block_size
        if size < _SMALLEST_BLOCK or size & (size - 1):
            raise UsageError(f"block_size {size} is no power of two from {_SMALLEST_BLOCK}", hint="32 is the default")

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """See `Target.adapt`: GRUs and RNNs are written out where they are quantized; LSTMs have a kernel."""
        from deploykit_targets._schemes.recurrent import written_out
        from deploykit_targets.onnxruntime.scheme import NATIVE

        return written_out(captured, request, native=NATIVE)

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.onnxruntime.scheme import scheme_of

        return scheme_of(request, captured)

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        from deploykit_targets.onnxruntime.convert import convert

        needs, opset = self.requirements(prepared.device, prepared.precision), prepared.options.opset
        packages = needs.packages if opset < _SINCE_1_21 else {"onnxruntime": ">=1.21"}
        return replace(
            convert(prepared, folder), requirements=replace(needs, packages=packages, opset={"ai.onnx": opset})
        )

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        from deploykit_targets.onnxruntime.session import OnnxRuntimeSession

        return OnnxRuntimeSession(artifact, threads)
