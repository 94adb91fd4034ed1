"""Operators that converters lack or get wrong, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("coremltools", reason="coremltools is not installed")

from plain_ops import check


def test_operators_are_pytorchs(tmp_path: Path) -> None:
    check("iphone-15", tmp_path)
