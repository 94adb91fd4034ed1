"""`precision="auto"`: the fastest precision that passes, by measurement here, and by estimate elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import deploykit
from deploykit.contract.errors import CalibrationError
from deploykit.contract.precision import Evidence
from deploykit.plugin.registry import toolchain
from deploykit_tuning import auto


def export(case: Any, target: str, output: Path, **arguments: Any) -> deploykit.Artifact:
    shared: dict[str, Any] = {"calibration": case.run, "evaluate": case.right, "max_drop": 0.2, "profile": False}
    shared |= {"progress": False, "output": output, **arguments}
    return deploykit.export(case.captured, target, "auto", **shared)


def test_the_fastest_that_passes_here(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An int8 that misses is tuned, and what is slower or misses stays in the table."""
    monkeypatch.setattr(auto, "PRECISIONS", ("int8", "fp32"))
    gate = deploykit.Tolerance(min_sqnr_db=55.0)
    artifact = export(case, "x86-cpu", tmp_path / "a", tolerance=gate, min_placement=0.0)
    choice = artifact.choice
    assert choice is not None and artifact.status == "verified" and artifact.path == tmp_path / "a"
    rows = {row.target: row for row in choice.candidates}
    assert rows.keys() == {"int8", auto.TUNED, "fp32"} and rows["int8"].status == "failed"
    assert "below 55 dB" in rows["int8"].reason and rows["int8"].latency_ms is None
    passing = [row for row in choice.candidates if row.latency_ms is not None]
    assert {row.target for row in passing} == {auto.TUNED, "fp32"}
    if choice.evidence is Evidence.DEVICE:  # else this CPU lacks what the device has
        assert choice.threads > 0
    assert choice.winner == min(passing, key=lambda row: row.latency_ms.p50).target
    assert artifact.precision == choice.winner.partition(",")[0]
    assert artifact.parity is not None and artifact.parity.metric is not None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_precision_whose_converter_crashes_is_a_row(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PRECISIONS", ("int8-dynamic", "fp32"))
    plugin = toolchain("onnxruntime")
    lower = plugin.lower

    def crash(prepared: Any, folder: Path) -> Any:
        if prepared.precision == "int8-dynamic":
            raise RuntimeError("the converter fell over")
        return lower(prepared, folder)

    monkeypatch.setattr(plugin, "lower", crash)
    choice = export(case, "x86-cpu", tmp_path / "a", min_placement=0.0).choice
    assert choice is not None and choice.winner == "fp32"
    row = {row.target: row for row in choice.candidates}["int8-dynamic"]
    assert (row.status, row.reason) == ("crashed", "unexpected RuntimeError: the converter fell over")


@pytest.mark.parametrize(("target", "precision"), [("x86-cpu", "auto"), ("x86-cpu:fastest", "int8")])
def test_what_is_wrong_with_the_data_is_no_verdict_on_the_candidates(
    target: str, precision: str, case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PRECISIONS", ("int8", "fp32"))
    broken = [torch.full_like(case.captured.example_inputs[0], float("nan"))]
    with pytest.raises(CalibrationError, match="holds NaN"):
        deploykit.export(
            case.captured, target, precision, calibration=broken, output=tmp_path / "a", profile=False, progress=False
        )
    assert not (tmp_path / "a").exists()


def test_the_metric_of_the_float_model_is_measured_once_and_refused_before_anything_is_made(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PRECISIONS", ("int8", "fp32"))
    scored: list[Any] = []

    def evaluate(session: Any) -> list[bool]:
        scored.append(session)
        return case.right(session)

    export(case, "x86-cpu", tmp_path / "a", evaluate=evaluate, min_placement=0.0)
    assert len(scored) == 3, "the float model, and two artifacts"
    monkeypatch.setattr(auto, "_made", None)
    with pytest.raises(deploykit.UsageError, match="`return accuracy`"):
        export(case, "x86-cpu", tmp_path / "b", evaluate=lambda session: (0.9, 0.3))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_by_estimate_where_the_device_is_not_here(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "PRECISIONS", ("int8", "fp16"))
    artifact = export(case, "jetson-orin", tmp_path / "a")
    assert artifact.choice is not None
    assert artifact.choice.evidence is Evidence.ESTIMATE and artifact.choice.threads == 0
    assert [row.latency_ms is None for row in artifact.choice.candidates] == [False, False]


def test_by_relative_cost_where_the_table_has_no_rates(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    monkeypatch.setattr(auto, "PRECISIONS", ("fp32", "fp16"))
    artifact = export(case, "coreml", tmp_path / "a")
    choice = artifact.choice
    assert choice is not None and choice.winner == "fp16" and choice.evidence is Evidence.ESTIMATE
    costs = {row.target: row.relative_cost for row in choice.candidates}
    macs = sum(layer.macs for layer in artifact.achieved.layers)
    assert costs == {"fp16": 2.0 * macs, "fp32": 4.0 * macs}
    assert [row.latency_ms for row in choice.candidates] == [None, None]


def test_patterns_are_of_the_precisions_that_quantise(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PRECISIONS", ("int8", "fp32"))
    artifact = export(case, "x86-cpu", tmp_path / "a", exclude=["0"], min_placement=0.0)
    assert artifact.choice is not None
    assert not [row for row in artifact.choice.candidates if "has no effect" in row.reason]
    monkeypatch.setattr(auto, "PRECISIONS", ("fp32",))
    with pytest.raises(deploykit.UsageError, match=r"exclude=.* has no effect in fp32"):
        export(case, "x86-cpu", tmp_path / "b", exclude=["0"])


def test_what_auto_cannot_choose(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(deploykit.UsageError, match="both choose"):
        export(case, "x86-cpu:fastest", tmp_path / "a")
    with pytest.raises(deploykit.UsageError, match="within one precision"):
        deploykit.tune(case.captured, "x86-cpu", "auto", calibration=case.run, output=tmp_path / "a")
    monkeypatch.setattr(auto, "PRECISIONS", ("bf16",))
    with pytest.raises(deploykit.UnsupportedPrecisionError, match="has none of bf16"):
        export(case, "x86-cpu", tmp_path / "a")
    monkeypatch.setattr(auto, "PRECISIONS", ("int8",))
    with pytest.raises(deploykit.UsageError, match="int8 needs calibration data"):
        export(case, "x86-cpu", tmp_path / "a", calibration=None)
    monkeypatch.setattr(auto, "PRECISIONS", ("int8", "fp32"))
    with pytest.raises(deploykit.ParityError, match=r"x86-cpu passes: int8: int8 needs calibration data.*fp32: "):
        export(case, "x86-cpu", tmp_path / "a", calibration=None, max_drop=-2.0)
    assert not list(tmp_path.iterdir())
