"""deploykit: export a PyTorch model to any edge or server target, and prove that the export is right.

    artifact = deploykit.export(model, target="jetson-orin", precision="int8", example_inputs=(x,), calibration=loader)

Importing this package is cheap: no framework is loaded, and everything below is resolved at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deploykit._version import __version__

if TYPE_CHECKING:
    from deploykit._build import build
    from deploykit._calibrate import calibrate
    from deploykit._export import export
    from deploykit.artifact import Artifact, load
    from deploykit.errors import (
        ArtifactError,
        CalibrationError,
        CaptureError,
        ConversionError,
        DeploykitError,
        DeviceError,
        GateError,
        MissingDependencyError,
        ParityError,
        PerformanceError,
        PlacementError,
        UnknownTargetError,
        UnsupportedPrecisionError,
        UsageError,
    )
    from deploykit.parity import ParityReport, Tolerance
    from deploykit.precision import Evidence, Precision
    from deploykit.profiling import Profile
    from deploykit.registry import targets
    from deploykit.session import Session
    from deploykit.target import Target
    from deploykit.tensors import TensorSpec
    from deploykit_calibration.table import CalibrationTable

_HOME = {
    "build": "_build",
    "export": "_export",
    "calibrate": "_calibrate",
    "CalibrationTable": "_calibrate",
    "load": "artifact",
    "Artifact": "artifact",
    "targets": "registry",
    "Target": "target",
    "Session": "session",
    "TensorSpec": "tensors",
    "ParityReport": "parity",
    "Tolerance": "parity",
    "Profile": "profiling",
    "Evidence": "precision",
    "Precision": "precision",
    "ArtifactError": "errors",
    "CalibrationError": "errors",
    "CaptureError": "errors",
    "ConversionError": "errors",
    "DeploykitError": "errors",
    "DeviceError": "errors",
    "GateError": "errors",
    "MissingDependencyError": "errors",
    "ParityError": "errors",
    "PerformanceError": "errors",
    "PlacementError": "errors",
    "UnknownTargetError": "errors",
    "UnsupportedPrecisionError": "errors",
    "UsageError": "errors",
}

__all__ = [
    # do
    "build",
    "calibrate",
    "export",
    "load",
    "targets",
    # values
    "Artifact",
    "CalibrationTable",
    "Evidence",
    "ParityReport",
    "Precision",
    "Profile",
    "Session",
    "Target",
    "TensorSpec",
    "Tolerance",
    # errors
    "ArtifactError",
    "CalibrationError",
    "CaptureError",
    "ConversionError",
    "DeploykitError",
    "DeviceError",
    "GateError",
    "MissingDependencyError",
    "ParityError",
    "PerformanceError",
    "PlacementError",
    "UnknownTargetError",
    "UnsupportedPrecisionError",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"deploykit.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
