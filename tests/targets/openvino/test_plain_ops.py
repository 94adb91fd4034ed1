"""Operators that converters lack or get wrong, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("openvino", reason="openvino is not installed")

from plain_ops import check


def test_operators_are_pytorchs(tmp_path: Path) -> None:
    check("x86-cpu:openvino", tmp_path)
