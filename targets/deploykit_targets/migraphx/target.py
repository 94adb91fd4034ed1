"""The MIGraphX plugin: capabilities, options, and the hooks that its siblings in this folder fill.

MIGraphX compiles only on the GPU that runs the result. So an export makes a portable artifact here, checked statically
and by reference numerics, and `deploykit build` compiles it on the device; both at once where the device is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deploykit.contract.devices import Device, load_devices
from deploykit.contract.errors import MissingDependencyError, UsageError
from deploykit.contract.optional import Requirement
from deploykit.contract.precision import Evidence, Precision
from deploykit.plugin.target import Capabilities, Payload
from deploykit_targets._on_device.target import BuiltOnDevice, check_shapes
from deploykit_targets.migraphx import session

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit_calibration.prepared import Prepared

_RUNTIMES = (session.MIGRAPHX, session.ONNXRUNTIME)


@dataclass(frozen=True)
class MigraphxOptions:
    """Options of the MIGraphX toolchain; all of them are of the build on the device, and can be changed there.

    Attributes:
        runtime: `migraphx` (a compiled .mxr file), or `onnxruntime` (its MIGraphX provider with a cache folder).
        exhaustive_tune: try every kernel; compiles for much longer.
        fast_math: approximate exp, tanh and the like; not with `onnxruntime`, whose provider always turns it off.
        max_batch: largest batch of a dynamic batch axis whose largest size `dynamic_shapes` does not give.
        shapes: `NAME=MIN:OPT:MAX` for inputs with dynamic axes, such as `ids=1x8:1x64:1x512`; by default the bounds
            that `dynamic_shapes` gave, around the example.

    `onnxruntime` compiles for each shape as it comes, and needs no ranges.
    """

    runtime: Literal["migraphx", "onnxruntime"] = "migraphx"
    exhaustive_tune: bool = False
    fast_math: bool = False
    max_batch: int = 8
    shapes: tuple[str, ...] = ()


class MigraphxTarget(BuiltOnDevice):
    """AMD GPUs through MIGraphX."""

    name: ClassVar[str] = "migraphx"
    program: ClassVar[str] = session.PROGRAM
    options_type: ClassVar[type[MigraphxOptions]] = MigraphxOptions

    def capabilities(self) -> Capabilities:
        """See `Target.capabilities`."""
        return Capabilities(
            summary="AMD GPUs through MIGraphX",
            precisions=(Precision.INT8, Precision.FP16, Precision.BF16, Precision.FP8, Precision.FP32),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="migraphx",
            runtime_extra="migraphx-build",
            export_requires=(Requirement("torch"), Requirement("onnx"), Requirement("onnxruntime")),
            runtime_requires=(
                Requirement(
                    "migraphx", how="sudo apt-get install migraphx, from AMD's ROCm repository", api="parse_onnx"
                ),
            ),
            evidence=Evidence.REFERENCE,
        )

    def check_options(self, options: Any, device: Device) -> None:
        """See `Target.check_options`."""
        super().check_options(options, device)
        if options.runtime not in _RUNTIMES:
            raise UsageError(f"runtime={options.runtime!r}: it is one of {', '.join(_RUNTIMES)}")
        if options.fast_math and options.runtime == session.ONNXRUNTIME:
            message = "fast_math=true: ONNX Runtime's MIGraphX provider always turns it off"
            raise UsageError(message, hint="leave fast_math out, or runtime=migraphx")

    def check_runnable(self, artifact: StoredArtifact) -> None:
        """See `Target.check_runnable`; what ONNX Runtime's provider runs needs no bindings of MIGraphX."""
        if _runtime_of(artifact) == session.MIGRAPHX:
            super().check_runnable(artifact)
            return
        here = Requirement("onnxruntime")
        if self.interpreter(artifact) is None and not here.installed:
            command = "pip install onnxruntime-migraphx, for this ROCm"
            raise MissingDependencyError(
                "onnxruntime", extra="migraphx-build", purpose="run this artifact", command=command
            )

    def interpreter(self, artifact: StoredArtifact | None = None) -> str | None:
        """See `BuiltOnDevice.interpreter`."""
        return session.interpreter(session.MIGRAPHX if artifact is None else _runtime_of(artifact))

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`."""
        from deploykit_targets.migraphx.scheme import scheme_of

        return scheme_of(request, captured)

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        check_shapes(prepared.options.shapes, prepared.captured.inputs)
        from deploykit_targets.migraphx.convert import convert

        return convert(prepared, folder)

    def _build_here(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload:
        from deploykit_targets.migraphx.convert import build

        return build(artifact, folder, options)


def _runtime_of(artifact: StoredArtifact) -> str:
    """What a built artifact runs in: ONNX Runtime opens the ONNX file, MIGraphX its own program."""
    return session.ONNXRUNTIME if artifact.entry.suffix == ".onnx" else session.MIGRAPHX
