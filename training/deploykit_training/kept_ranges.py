"""Ranges beside a checkpoint: a calibration table as bytes in a tensor, which every trainer can store and send."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploykit_calibration.table import SUFFIX, CalibrationTable


def packed(table: CalibrationTable) -> Tensor:
    """A table as the bytes of its file, uint8."""
    with tempfile.TemporaryDirectory() as folder:
        path = table.save(Path(folder) / f"ranges{SUFFIX}")
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8))


def unpacked(packed: Tensor) -> CalibrationTable:
    """The table of these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"ranges{SUFFIX}"
        packed.cpu().numpy().tofile(path)
        return CalibrationTable.load(path)
