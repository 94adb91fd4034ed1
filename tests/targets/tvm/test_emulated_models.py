"""Exports for a server with matrix products of bytes, run on its emulated CPU; boards are in `board/test_models.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import deploykit
from deploykit.contract.precision import Evidence
from deploykit.testing.conformance import batches
from deploykit.testing.models import ZOO
from deploykit_targets.tvm.tools import system_tools


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [tool for tool in system_tools() if not tool.installed]
    if missing:
        pytest.skip(f"not installed: {', '.join(tool.package for tool in missing)}")


@pytest.mark.parametrize("model", [pytest.param("mobilenet_like", marks=pytest.mark.nightly), "transformer_encoder"])
@pytest.mark.parametrize("board", ["graviton3"])
def test_int8_on_a_board(board: str, model: str, tmp_path: Path) -> None:
    module, example = ZOO[model]()
    artifact = deploykit.export(
        module,
        target=board,
        precision="int8",
        example_inputs=example,
        calibration=batches(example),
        output=tmp_path / "out",
        profile=False,
        progress=False,
    )
    assert artifact.parity is not None and artifact.parity.passed
    assert artifact.parity.evidence is Evidence.EMULATOR
    simulated = artifact.parity.lowering
    assert simulated.worst.sqnr_db > 60  # a unit here and there, where a sum lies at a tie
    assert artifact.achieved.macs_fraction("int8") == 1.0
    assert artifact.verify().sqnr_db > 60


def test_without_an_emulator_parity_is_that_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.places.qemu.EMULATOR", _Missing())
    monkeypatch.setattr("deploykit_targets.tvm.reference.EMULATOR", _Missing())
    module, example = ZOO["squeeze_excite_cnn"]()
    artifact = deploykit.export(
        module,
        target="raspberry-pi-4",
        precision="int8",
        example_inputs=example,
        calibration=batches(example),
        output=tmp_path / "out",
        progress=False,
    )
    assert artifact.parity is not None and artifact.parity.evidence is Evidence.REFERENCE
    simulated = artifact.parity.lowering
    assert simulated.worst.sqnr_db > 60
    assert artifact.manifest.metadata["library"]["arch"] == "aarch64"
    assert artifact.profile is not None and artifact.profile.evidence is Evidence.ESTIMATE


def test_without_an_emulator_bfloat16_is_that_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.places.qemu.EMULATOR", _Missing())
    monkeypatch.setattr("deploykit_targets.tvm.reference.EMULATOR", _Missing())
    module, example = ZOO["mlp"]()
    artifact = deploykit.export(
        module,
        target="graviton3",
        precision="bf16",
        example_inputs=example,
        output=tmp_path / "out",
        profile=False,
        progress=False,
    )
    assert artifact.parity is not None and artifact.parity.evidence is Evidence.REFERENCE
    assert artifact.parity.passed and artifact.parity.sqnr_db < 70, "eight bits"


class _Missing:
    """An emulator that is not installed."""

    installed = False
