"""`NumpyTarget`: what the toolchain can do, and where its two steps are. Imports nothing heavy: listing loads it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import Precision, Session, Target
from deploykit.artifact.store import StoredArtifact
from deploykit.contract.devices import load_devices
from deploykit.contract.optional import Requirement
from deploykit.contract.request import Request
from deploykit.contract.scheme import WEIGHT, Scheme, weights_alone
from deploykit.plugin.target import Capabilities, Payload

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_calibration.prepared import Prepared


class NumpyTarget(Target):
    """Linear networks in NumPy: fp32, or weights of 12 or 8 bits with one scale per output channel."""

    name = "numpy"

    @functools.cache  # noqa: B019 - one instance per process, held by the registry
    def capabilities(self) -> Capabilities:
        """Exporting needs PyTorch; running needs nothing that deploykit does not bring."""
        return Capabilities(
            summary="linear networks in plain NumPy",
            precisions=(Precision.FP32, Precision("int12-weight-only"), Precision.INT8_WEIGHT_ONLY),
            devices=load_devices(Path(__file__).with_name("devices.toml"), toolchain=self.name),
            export_extra="export",
            runtime_extra="",
            export_requires=(Requirement("torch"),),
            runtime_requires=(),
            distribution="deploykit-numpy",
        )

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """See `Target.scheme`: weights of linear layers alone, in the form that the precision's row says."""
        if not request.precision.is_weight_only:
            return super().scheme(request, captured)
        return weights_alone(f"numpy-{request.precision}", request.precision.row.weights, rules={"linear": WEIGHT})

    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """See `Target.lower`."""
        from deploykit_numpy.convert import convert

        return convert(prepared, folder)

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        from deploykit_numpy.session import NumpySession

        return NumpySession(artifact)
