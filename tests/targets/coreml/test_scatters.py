"""Networks that sum and reduce by index, as graph networks do, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("coremltools", reason="coremltools is not installed")

from scatters import HOW, check


@pytest.mark.parametrize("how", HOW)
def test_sums_by_index(how: str, tmp_path: Path) -> None:
    check("iphone-15", how, tmp_path)
