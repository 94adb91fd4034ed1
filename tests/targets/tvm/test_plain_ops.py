"""Operators that converters lack or get wrong, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("tvm", reason="tvm is not installed")

from plain_ops import check

REFUSED = ("top", "k-th value", "median", "copied rows")
"""By name: the target has no top-k, and no scatter that replaces."""


def test_operators_are_pytorchs(tmp_path: Path) -> None:
    check("x86-cpu:tvm", tmp_path, without=REFUSED)
