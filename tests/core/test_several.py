"""`export(model, target=[...])`: every target from one capture and one calibration."""

from __future__ import annotations

import inspect

import pytest

import deploykit
from deploykit.contract.errors import CalibrationError, ConversionError, ParityError, UnknownTargetError, UsageError
from deploykit.plugin.registry import toolchain

torch = pytest.importorskip("torch", reason="models are captured")
pytest.importorskip("onnxruntime", reason="the targets are of ONNX Runtime")


class Net(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        Net.calls += not torch.compiler.is_compiling()
        return self.layer(x).relu()


X = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))


def batches():
    yield from torch.randn(12, 1, 4, generator=torch.Generator().manual_seed(1))


def export(target, precision="int8", **options):
    return deploykit.export(Net(), target, precision, example_inputs=(X,), profile=False, progress=False, **options)


def test_a_list_of_targets_gives_a_list_of_artifacts_each_as_by_itself(tmp_path, monkeypatch):
    from deploykit.pipeline import capturing, steps

    captured, counted = [], capturing.captured_of
    monkeypatch.setattr(
        "deploykit.pipeline.several.captured_of", lambda *a, **k: captured.append(1) or counted(*a, **k)
    )
    calibrated, calibrate = [], steps.calibrate
    monkeypatch.setattr(steps, "calibrate", lambda *a, **k: calibrated.append(1) or calibrate(*a, **k))
    many = export(["x86-cpu", "x86-cpu-avx2"], calibration=batches(), output=tmp_path / "many")
    assert [artifact.target for artifact in many] == ["x86-cpu", "x86-cpu-avx2"]
    assert (len(captured), len(calibrated)) == (1, 1)
    assert [artifact.path.name for artifact in many] == ["x86-cpu", "x86-cpu-avx2"]
    for artifact in many:
        alone = export(artifact.target, calibration=list(batches()), output=tmp_path / "alone" / artifact.target)
        assert alone.fingerprint == artifact.fingerprint


def test_what_one_target_refuses_is_refused_before_anything_is_computed(tmp_path):
    Net.calls = 0
    for target, error, options in (
        (["x86-cpu", "x86-cqu"], UnknownTargetError, {}),
        (["x86-cpu", "x86-cpu"], UsageError, {}),
        ([], UsageError, {}),
        (["x86-cpu"], CalibrationError, {}),
        (("x86-cpu",), UsageError, {"recipe": "r.toml"}),
    ):
        with pytest.raises(error):
            export(target, output=tmp_path / "out", **options)
    assert Net.calls == 0 and not (tmp_path / "out").exists()


def test_a_target_that_misses_its_gate_takes_no_other_with_it(tmp_path):
    gate = deploykit.Tolerance(min_sqnr_db=190.0)
    with pytest.raises(ParityError, match=r"^x86-cpu: .*; x86-cpu-avx2 failed, too") as caught:
        export(["x86-cpu", "x86-cpu-avx2"], calibration=batches(), tolerance=gate, output=tmp_path)
    assert caught.value.candidate.status == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x86-cpu-avx2.failed", "x86-cpu.failed"]


def test_a_converter_that_crashes_takes_no_other_target_with_it(tmp_path, monkeypatch):
    plugin = toolchain("onnxruntime")
    lower = plugin.lower

    def crash(prepared, folder):
        if prepared.device.name == "x86-cpu":
            raise RuntimeError("the converter fell over")
        return lower(prepared, folder)

    monkeypatch.setattr(plugin, "lower", crash)
    with pytest.raises(ConversionError, match=r"^x86-cpu: unexpected RuntimeError: the converter fell over") as caught:
        export(["x86-cpu", "x86-cpu-avx2"], calibration=batches(), output=tmp_path)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert [path.name for path in tmp_path.iterdir()] == ["x86-cpu-avx2"]


def test_the_two_signatures_say_the_same():
    from deploykit.pipeline.export import Settings

    own = set(inspect.signature(deploykit.export).parameters) - {"model", "target", "precision"}
    assert own == set(Settings.__annotations__)
