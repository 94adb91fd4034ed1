"""Callbacks for the Trainer of Hugging Face: train for a target, with any of its models.

    qat = deploykit.transformers.QuantizationAwareTraining(target="x86-cpu")
    Trainer(model, args, train_dataset=data, callbacks=[qat]).train()
    artifact = qat.trained.export(output="out")

Everything is resolved at first use; importing this imports neither PyTorch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit_training.huggingface.quantization import QuantizationAwareTraining

_HOME = {"QuantizationAwareTraining": "deploykit_training.huggingface.quantization"}

__all__ = ["QuantizationAwareTraining"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deploykit.contract.optional import require

    require("transformers", extra="test-models", purpose="train with its Trainer")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
