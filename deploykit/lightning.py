"""Callbacks for Lightning 2: train for a target, calibrate, export at the end of `fit`.

    trainer = Trainer(callbacks=[
        deploykit.lightning.QuantizationAwareTraining(target="jetson-orin"),
        deploykit.lightning.Export(targets=["jetson-orin"], output="out"),
    ])

Everything is resolved at first use; importing this imports neither PyTorch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit_training.lightning.calibration import Calibration
    from deploykit_training.lightning.distillation import Distillation
    from deploykit_training.lightning.export import Export
    from deploykit_training.lightning.pruning import Pruning
    from deploykit_training.lightning.quantization import QuantizationAwareTraining

_HOME = {
    "Calibration": "deploykit_training.lightning.calibration",
    "Distillation": "deploykit_training.lightning.distillation",
    "Pruning": "deploykit_training.lightning.pruning",
    "Export": "deploykit_training.lightning.export",
    "QuantizationAwareTraining": "deploykit_training.lightning.quantization",
}

__all__ = ["Calibration", "Distillation", "Export", "Pruning", "QuantizationAwareTraining"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deploykit.contract.optional import require

    require("lightning", extra="train", purpose="train with its callbacks")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
