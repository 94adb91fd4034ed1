"""Integers are the artifact's real input, and what is computed of them is quantised: see `integer_inputs`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("torch", reason="torch is not installed")

import integer_inputs


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "target"), [("camera", "x86-cpu:aotinductor")])
def test_integers_are_the_input(name: str, target: str, tmp_path: Path) -> None:
    integer_inputs.check(name, target, tmp_path / "a")
