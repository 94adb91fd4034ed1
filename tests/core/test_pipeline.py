"""The steps of an export one by one, and what of one is shared by several."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from torch import nn  # noqa: E402  (after the check that it is there)

import deploykit  # noqa: E402
from deploykit import pipeline  # noqa: E402
from deploykit.plugin.registry import toolchains  # noqa: E402

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def calibrated() -> Any:
    captured = pipeline.capture(net(), example_inputs=(X,))
    return captured, pipeline.calibrate(captured, DATA, progress=False)


def test_the_steps_in_a_row_are_an_export(calibrated: Any, tmp_path: Path) -> None:
    captured, run = calibrated
    request = pipeline.request("x86-cpu", "int8")
    prepared = pipeline.prepare(request, captured, run)
    (tmp_path / "steps").mkdir()
    payload = pipeline.lower(prepared, tmp_path / "steps")
    report = pipeline.judge(prepared, payload, tmp_path / "steps", run)
    exported = deploykit.export(
        net(), "x86-cpu", example_inputs=(X,), calibration=DATA, output=tmp_path / "a", profile=False, progress=False
    )
    assert exported.entry.read_bytes() == (tmp_path / "steps" / payload.entry).read_bytes()
    assert exported.parity is not None and report.sqnr_db == exported.parity.sqnr_db
    assert report.data == exported.parity.data and report.data.startswith("held-out calibration data")
    assert [link.candidate for link in report.chain] == ["simulated q/dq", "artifact", "artifact"]


def test_one_capture_and_one_calibration_serve_several_targets(
    calibrated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, run = calibrated
    alone = deploykit.export(
        net(), "x86-cpu", example_inputs=(X,), calibration=DATA, output=tmp_path / "a", profile=False, progress=False
    )
    monkeypatch.setattr("deploykit.capture.capture", None)  # nothing is captured or observed again
    monkeypatch.setattr("deploykit_calibration.observe._observed", None)
    shared = deploykit.export(
        captured, "x86-cpu", calibration=run, output=tmp_path / "b", profile=False, progress=False
    )
    assert (alone.path / "manifest.json").read_bytes() == (shared.path / "manifest.json").read_bytes()
    other = deploykit.export(
        captured, "x86-cpu-avx2", calibration=run, output=tmp_path / "c", profile=False, progress=False
    )
    assert other.parity is not None and other.parity.data.startswith("held-out calibration data")


def test_a_captured_model_has_its_inputs(calibrated: Any, tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match="captured model has its inputs") as caught:
        deploykit.export(calibrated[0], "x86-cpu", "fp32", example_inputs=(X,), output=tmp_path / "a")
    assert "deploykit.pipeline.capture" in str(caught.value)


def test_a_calibration_of_another_model_is_refused(calibrated: Any, tmp_path: Path) -> None:
    with pytest.raises(deploykit.CalibrationError, match="calibration table is of model"):
        deploykit.export(
            nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval(),
            "x86-cpu",
            example_inputs=(X,),
            calibration=calibrated[1],
            output=tmp_path / "a",
        )


@pytest.mark.parametrize("target", sorted(toolchains()))
def test_a_request_is_values(target: str) -> None:
    request = pipeline.request(target, "int8", exclude=["layer1.*"])
    copy = pickle.loads(pickle.dumps(request))
    assert copy == request


def test_what_a_request_cannot_be() -> None:
    with pytest.raises(deploykit.UsageError, match="no algorithm 'gptqq'"):
        pipeline.request("x86-cpu", algorithms=("gptqq",))
    with pytest.raises(deploykit.UnsupportedPrecisionError):
        pipeline.request("x86-cpu", "fp8")
    with pytest.raises(AttributeError, match="no attribute 'prepair'"):
        _ = pipeline.prepair  # type: ignore[attr-defined]


def test_importing_the_pipeline_loads_no_framework() -> None:
    code = "import sys, deploykit.pipeline; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missed_gate_leaves_no_verified_folder(calibrated: Any, tmp_path: Path) -> None:
    captured, run = calibrated
    prepared = pipeline.prepare(pipeline.request("x86-cpu"), captured, run)
    payload = pipeline.lower(prepared, tmp_path / "a")
    gate = deploykit.Tolerance(min_sqnr_db=150.0)
    assert not pipeline.judge(prepared, payload, tmp_path / "a", run, tolerance=gate).passed
    assert deploykit.load(tmp_path / "a").status == "failed"
    assert pipeline.judge(prepared, payload, tmp_path / "a", run).passed  # again, in the same folder
    assert deploykit.load(tmp_path / "a").status == "verified"


def test_a_folder_that_holds_something_is_refused(calibrated: Any, tmp_path: Path) -> None:
    prepared = pipeline.prepare(pipeline.request("x86-cpu"), *calibrated)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(deploykit.UsageError, match="is not empty"):
        pipeline.lower(prepared, tmp_path)


def test_the_statistics_of_another_model_are_refused(calibrated: Any) -> None:
    other = pipeline.capture(net().append(nn.ReLU()), example_inputs=(X,))
    with pytest.raises(deploykit.CalibrationError, match="calibration table is of model"):
        pipeline.prepare(pipeline.request("x86-cpu"), other, calibrated[1])


def test_a_table_serves_as_a_calibration(calibrated: Any) -> None:
    captured, run = calibrated
    request = pipeline.request("x86-cpu")
    of_table, of_run = (pipeline.prepare(request, captured, known) for known in (run.table, run))
    assert str(of_table.graph_module.graph) == str(of_run.graph_module.graph)


def test_precisions_without_ranges_take_no_statistics(calibrated: Any) -> None:
    assert pipeline.prepare(pipeline.request("x86-cpu", "fp16"), *calibrated).table is None


@pytest.mark.parametrize("method", ["best:3", "minmax:3", "guess"])
def test_a_method_is_checked_before_anything_is_computed(method: str) -> None:
    with pytest.raises(deploykit.UsageError, match="unknown calibration_method"):
        pipeline.request("x86-cpu", method=method)


def test_algorithms_are_a_list() -> None:
    with pytest.raises(deploykit.UsageError, match="list of names"):
        pipeline.request("x86-cpu", algorithms="best")


def test_no_module_hides_a_step() -> None:
    """A submodule, once imported, is an attribute of its package, and would stand before the function of its name."""
    folder = Path(pipeline.__file__).parent
    assert not {path.stem for path in folder.glob("*.py")} & set(pipeline.__all__)
    root = folder.parent
    assert not {path.stem for path in root.iterdir()} & set(deploykit.__all__)
