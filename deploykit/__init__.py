"""deploykit: export a PyTorch model to any edge or server target, and prove that the export is right.

    artifact = deploykit.export(model, target="jetson-orin", precision="int8", example_inputs=(x,), calibration=loader)

Importing this package is cheap: no framework is loaded, and everything below is resolved at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deploykit._version import __version__

if TYPE_CHECKING:
    from deploykit.contract.errors import (
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
    from deploykit.contract.precision import Evidence, Precision
    from deploykit.contract.recipe import Recipe
    from deploykit.contract.session import Session
    from deploykit.contract.tensors import TensorSpec
    from deploykit.judge.parity import ParityReport, Tolerance
    from deploykit.judge.profiling import Profile
    from deploykit.pipeline.build import build
    from deploykit.pipeline.calibration import calibrate
    from deploykit.pipeline.export import export
    from deploykit.plugin.artifact import Artifact, load
    from deploykit.plugin.registry import targets
    from deploykit.plugin.target import Target
    from deploykit_calibration.table import CalibrationTable
    from deploykit_fleet.devices.client import Device, device
    from deploykit_fleet.release import release
    from deploykit_fleet.report.making import report
    from deploykit_training.combination import Compressed, compress
    from deploykit_training.distillation.distiller import distill
    from deploykit_training.distillation.terms import Feature, Relation, Response
    from deploykit_training.pruning.job import prune
    from deploykit_training.pruning.report import PruneReport
    from deploykit_training.qat import qat
    from deploykit_trust.oci.pull import pull
    from deploykit_trust.oci.push import push
    from deploykit_trust.sbom import sbom
    from deploykit_trust.signing import sign
    from deploykit_tuning.sensitivity import sensitivity
    from deploykit_tuning.tuning import tune

_HOME = {
    "build": "pipeline.build",
    "export": "pipeline.export",
    "calibrate": "pipeline.calibration",
    "CalibrationTable": "deploykit_calibration.table",
    "device": "deploykit_fleet.devices.client",
    "Device": "deploykit_fleet.devices.client",
    "compress": "deploykit_training.combination",
    "Compressed": "deploykit_training.combination",
    "distill": "deploykit_training.distillation.distiller",
    "Response": "deploykit_training.distillation.terms",
    "Feature": "deploykit_training.distillation.terms",
    "Relation": "deploykit_training.distillation.terms",
    "prune": "deploykit_training.pruning.job",
    "pull": "deploykit_trust.oci.pull",
    "push": "deploykit_trust.oci.push",
    "qat": "deploykit_training.qat",
    "report": "deploykit_fleet.report.making",
    "sbom": "deploykit_trust.sbom",
    "sensitivity": "deploykit_tuning.sensitivity",
    "sign": "deploykit_trust.signing",
    "PruneReport": "deploykit_training.pruning.report",
    "release": "deploykit_fleet.release",
    "load": "plugin.artifact",
    "Artifact": "plugin.artifact",
    "targets": "plugin.registry",
    "tune": "deploykit_tuning.tuning",
    "Target": "plugin.target",
    "Recipe": "contract.recipe",
    "Session": "contract.session",
    "TensorSpec": "contract.tensors",
    "ParityReport": "judge.parity",
    "Tolerance": "judge.parity",
    "Profile": "judge.profiling",
    "Evidence": "contract.precision",
    "Precision": "contract.precision",
    "ArtifactError": "contract.errors",
    "CalibrationError": "contract.errors",
    "CaptureError": "contract.errors",
    "ConversionError": "contract.errors",
    "DeploykitError": "contract.errors",
    "DeviceError": "contract.errors",
    "GateError": "contract.errors",
    "MissingDependencyError": "contract.errors",
    "ParityError": "contract.errors",
    "PerformanceError": "contract.errors",
    "PlacementError": "contract.errors",
    "UnknownTargetError": "contract.errors",
    "UnsupportedPrecisionError": "contract.errors",
    "UsageError": "contract.errors",
}

_MODULES = ("lightning", "transformers")
"""Submodules that `import deploykit` alone gives, when they are first asked for."""

__all__ = [
    # do
    "build",
    "calibrate",
    "compress",
    "device",
    "distill",
    "export",
    "load",
    "prune",
    "pull",
    "push",
    "qat",
    "release",
    "report",
    "sbom",
    "sensitivity",
    "sign",
    "targets",
    "tune",
    # values
    "Artifact",
    "CalibrationTable",
    "Compressed",
    "Device",
    "Evidence",
    "Feature",
    "ParityReport",
    "Precision",
    "Profile",
    "PruneReport",
    "Relation",
    "Response",
    "Recipe",
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
    if name in _MODULES:
        return importlib.import_module(f"deploykit.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    if home.startswith("deploykit_training."):
        from deploykit.contract.optional import require

        require("torch", extra="train", purpose=f"use deploykit.{name}")
    module = home if home.startswith("deploykit_") else f"deploykit.{home}"
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
