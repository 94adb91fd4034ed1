"""The pipeline end to end, on ONNX Runtime: what the user passes, what is refused, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the pipeline needs PyTorch")
pytest.importorskip("onnxruntime", reason="these exports run in ONNX Runtime")

import torch

import deploykit
from deploykit.artifact.manifest import FAILED, VERIFIED
from deploykit.contract.session import Session
from deploykit.testing import models
from deploykit.testing.conformance import batches


def export(output: Path, precision: str = "int8", **changes: Any) -> deploykit.Artifact:
    """The residual CNN for x86, quietly, into `output`."""
    model, example_inputs = models.residual_cnn()
    target = changes.pop("target", "x86-cpu")
    data = {"calibration": batches(example_inputs)} if precision == "int8" else {}
    arguments = {"example_inputs": example_inputs, "profile": False, "progress": False, **data, **changes}
    return deploykit.export(model, target, precision, output=output, **arguments)


def test_report_holds_the_whole_chain_and_names_layers(tmp_path: Path) -> None:
    report = export(tmp_path / "a").parity
    assert report is not None and report.passed
    names = [(link.reference, link.candidate) for link in report.chain]
    assert names == [
        ("float PyTorch", "simulated q/dq"),
        ("simulated q/dq", "artifact"),
        ("float PyTorch", "artifact"),
    ]
    assert report.sqnr_db == report.chain[-1].worst.sqnr_db > 30.0
    assert report.chain[1].worst.sqnr_db > report.chain[0].worst.sqnr_db, "the lowering adds more noise than int8"
    assert [layer.sqnr_db for layer in report.layers] == sorted(layer.sqnr_db for layer in report.layers)
    assert "layer1.conv1" in {layer.module_path for layer in report.layers}
    assert report.host.arch


def test_profile_compares_with_the_float_build(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", profile=True)
    profile = artifact.profile
    assert profile is not None
    assert profile.baseline == "fp32 artifact"
    assert profile.worth_it == pytest.approx(profile.baseline_latency_ms.p50 / profile.latency_ms.p50)
    assert profile.peak_memory_bytes is not None and 1e6 < profile.peak_memory_bytes < 1e9
    assert profile.size_bytes < profile.baseline_size_bytes
    assert {time.module_path for time in profile.op_times} >= {"layer1.conv1", "layer2.conv2"}
    assert deploykit.load(artifact.path).profile == profile


def test_missed_parity_raises_and_keeps_the_candidate(tmp_path: Path) -> None:
    gate = deploykit.Tolerance(min_sqnr_db=90.0)
    with pytest.raises(deploykit.ParityError, match=r"SQNR .* below 90 dB.*worst layers") as caught:
        export(tmp_path / "a", tolerance=gate)
    assert not (tmp_path / "a").exists()
    candidate = caught.value.candidate
    assert candidate is not None and candidate.path == tmp_path / "a.failed"
    assert candidate.status == FAILED
    assert caught.value.report is not None and not caught.value.report.passed
    assert deploykit.load(candidate.path).parity == caught.value.report


def test_not_strict_returns_the_candidate_marked_failed(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", tolerance=deploykit.Tolerance(min_sqnr_db=90.0), strict=False)
    assert artifact.status == FAILED and artifact.parity is not None and not artifact.parity.passed


def test_task_metric_gates_and_sees_both_sessions(tmp_path: Path) -> None:
    seen: list[Session] = []

    def evaluate(session: Session) -> float:
        seen.append(session)
        outputs = session.run({"x": np.zeros((1, 3, 32, 32), np.float32)})
        return float(outputs["output"].shape[1]) - 0.5 * (len(seen) - 1)

    with pytest.raises(deploykit.ParityError, match="task metric fell"):
        export(tmp_path / "a", evaluate=evaluate)
    artifact = export(tmp_path / "b", evaluate=lambda session: 1.0)
    assert artifact.parity is not None and artifact.parity.metric is not None
    assert artifact.parity.metric.drop == 0.0


@pytest.mark.parametrize("target", ["x86-cpu", ["x86-cpu"]])
def test_a_metric_that_is_none_is_refused_before_anything_is_converted(
    target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.pipeline.export.published", None)
    with pytest.raises(deploykit.UsageError, match=r"evaluate= returned \(0.9, 0.3\)"):
        export(tmp_path / "a", target=target, evaluate=lambda session: (0.9, 0.3))
    with pytest.raises(deploykit.UsageError, match="evaluate= returned nan for the float model"):
        export(tmp_path / "a", target=target, evaluate=lambda session: [1.0, float("nan")])
    assert not list(tmp_path.iterdir())


def test_the_float_model_is_scored_once_for_all_targets(tmp_path: Path) -> None:
    seen: list[Session] = []
    export(
        tmp_path / "a",
        target=["x86-cpu", "x86-cpu:onnxruntime"],
        evaluate=lambda session: float(bool(seen.append(session))),
    )
    assert len(seen) == 3


def test_synthetic_data_is_said_in_the_artifact(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", calibration="synthetic", strict=False)
    assert artifact.manifest.calibration is not None
    assert artifact.manifest.calibration.source == "synthetic"
    assert artifact.parity is not None and "synthetic" in artifact.parity.data


def test_a_table_serves_several_exports(tmp_path: Path) -> None:
    model, example_inputs = models.residual_cnn()
    table = deploykit.calibrate(model, batches(example_inputs), example_inputs=example_inputs, progress=False)
    table.save(tmp_path / "table.safetensors")
    first = export(tmp_path / "a", calibration=table)
    second = export(tmp_path / "b", calibration=tmp_path / "table.safetensors")
    assert first.manifest.fingerprints == second.manifest.fingerprints
    entries = [(artifact.path / artifact.manifest.entry).read_bytes() for artifact in (first, second)]
    assert entries[0] == entries[1]


def test_a_table_is_extended_by_more_samples() -> None:
    model, example_inputs = models.residual_cnn()
    data = batches(example_inputs, 6)
    whole = deploykit.calibrate(model, data, example_inputs=example_inputs, progress=False)
    part = deploykit.calibrate(model, data, example_inputs=example_inputs, limit=4, progress=False)
    grown = deploykit.calibrate(model, data[4:], example_inputs=example_inputs, extend=part, progress=False)
    assert (part.samples, grown.samples) == (4, whole.samples) == (4, 6)
    for name, statistics in whole.statistics.items():  # the first batch of a pass is float32, others may be bfloat16
        width = statistics.maximum - statistics.minimum
        assert grown.statistics[name].maximum == pytest.approx(statistics.maximum, abs=0.02 * width)
        assert grown.statistics[name].count == statistics.count


def test_table_of_another_model_is_refused(tmp_path: Path) -> None:
    model, example_inputs = models.mobilenet_like()
    table = deploykit.calibrate(model, batches(example_inputs), example_inputs=example_inputs, progress=False)
    with pytest.raises(deploykit.CalibrationError, match="model"):
        export(tmp_path / "a", calibration=table)


def test_excluded_layers_stay_float_and_say_why(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a", exclude=["layer2.*"])
    float_layers = {layer.module_path: layer.reason for layer in artifact.achieved.layers if layer.precision != "int8"}
    assert {path for path in float_layers if path.startswith("layer2.conv")} == {"layer2.conv1", "layer2.conv2"}
    assert "layer2.*" in float_layers["layer2.conv1"]
    with pytest.raises(deploykit.UsageError, match="no_such_layer"):
        export(tmp_path / "b", exclude=["no_such_layer.*"])


def test_min_placement_and_min_speedup_fail_closed(tmp_path: Path) -> None:
    with pytest.raises(deploykit.PlacementError, match="asked for"):
        export(tmp_path / "a", exclude=["layer2.*"], min_placement=0.99)
    with pytest.raises(deploykit.PerformanceError, match="asked for"):
        export(tmp_path / "b", profile=True, min_speedup=1e6)
    with pytest.raises(deploykit.UsageError, match="profile"):
        export(tmp_path / "c", min_speedup=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.failed", "b.failed"]


def test_int8_where_nothing_can_be_int8_is_a_placement_error(tmp_path: Path) -> None:
    with pytest.raises(deploykit.PlacementError, match="nothing runs in int8"):
        export(tmp_path / "a", exclude=["*"])


def test_an_existing_artifact_is_replaced_and_other_folders_are_not(tmp_path: Path) -> None:
    export(tmp_path / "a", "fp32")
    assert export(tmp_path / "a").precision == "int8"
    other = tmp_path / "precious"
    other.mkdir()
    (other / "notes.txt").write_text("keep me")
    with pytest.raises(deploykit.ArtifactError, match="not an artifact"):
        export(other)
    assert (other / "notes.txt").read_text() == "keep me"


def test_a_failing_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path / "a", "fp32")
    before = sorted(path.name for path in (tmp_path / "a").iterdir())

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploykit.pipeline.evidence.make_golden", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == before
    assert deploykit.load(tmp_path / "a").precision == "fp32"


def test_exported_program_tells_its_inputs(tmp_path: Path) -> None:
    model, example_inputs = models.residual_cnn()
    program = torch.export.export(model, example_inputs)
    artifact = deploykit.export(program, "x86-cpu", "fp32", output=tmp_path / "a", profile=False, progress=False)
    assert artifact.status == VERIFIED


def test_lightning_module_tells_inputs_and_data(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="LightningModule comes from the lightning package")
    network, example_inputs = models.residual_cnn()

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.example_input_array = example_inputs[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)  # type: ignore[no-any-return]

        def val_dataloader(self) -> Any:
            samples = [(batch[0][0], 0) for batch in batches(example_inputs, 8)]
            return torch.utils.data.DataLoader(samples, batch_size=2)  # type: ignore[arg-type]

    artifact = deploykit.export(Module(), "x86-cpu", "int8", output=tmp_path / "a", profile=False, progress=False)
    assert artifact.manifest.calibration is not None
    assert (artifact.manifest.calibration.samples, artifact.manifest.calibration.held_out) == (4, 4)


def test_hugging_face_model_tells_its_inputs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the model comes from transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=64
    )
    model = transformers.BertForSequenceClassification(config).eval()
    artifact = deploykit.export(model, "x86-cpu", "int8-dynamic", output=tmp_path / "a", profile=False, progress=False)
    assert artifact.status == VERIFIED
    assert [spec.name for spec in artifact.outputs] == ["logits"]


def test_missing_inputs_name_the_argument_to_pass(tmp_path: Path) -> None:
    model, _ = models.residual_cnn()
    with pytest.raises(deploykit.UsageError, match="example_inputs"):
        deploykit.export(model, "x86-cpu", "fp32", output=tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_a_table_takes_its_inputs_from_the_data_file(tmp_path: Path) -> None:
    model, (x,) = models.residual_cnn()
    np.savez(tmp_path / "data.npz", x=np.repeat(x.numpy(), 4, axis=0))
    assert deploykit.calibrate(model, tmp_path / "data.npz", progress=False).samples == 4 * len(x)


# -- on what parity is judged ------------------------------------------------------------------------------------


def noise(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 32, generator=generator) for _ in range(count)]


def export_mlp(output: Path, data: Any, **changes: Any) -> deploykit.ParityReport:
    with models.seeded(0):
        model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
    arguments = {"example_inputs": (torch.zeros(1, 32),), "profile": False, "progress": False, "strict": False}
    report = deploykit.export(model, "x86-cpu", "int8", calibration=data, output=output, **(arguments | changes)).parity
    assert report is not None
    return report


def test_the_claim_is_of_samples_that_calibration_did_not_see(tmp_path: Path) -> None:
    report = export_mlp(tmp_path / "a", noise(7))
    assert (report.samples, report.data) == (3, "held-out calibration data")
    others = {other.data: other for other in report.other_samples}
    seen = others["calibration data that its ranges were taken from"]
    assert seen.samples == 4 and seen.worst.sqnr_db > report.sqnr_db
    assert others["example inputs"].samples == 1
    assert any("judged on 3 held-out sample(s)" in text for text in report.notes)
    golden = deploykit.load(tmp_path / "a").golden()
    assert {tuple(feeds["input"].ravel()) for feeds in golden.inputs} == {
        tuple(x.ravel().numpy()) for x in noise(7)[1:5:2]
    }


def test_too_few_samples_are_told(tmp_path: Path) -> None:
    """One quiet sample cannot tell of a loud one: it is clipped, and the report says so instead of claiming 40 dB."""
    report = export_mlp(tmp_path / "a", [*noise(1), *(5.0 * x for x in noise(1, seed=1))])
    assert report.sqnr_db < 32.0
    assert any("1 calibration samples do not cover" in text for text in report.notes)
    one = export_mlp(tmp_path / "b", noise(1))
    assert one.data == "calibration data that its ranges were taken from"
    assert any("nothing could be held back" in text for text in one.notes)


def test_a_table_does_not_say_what_it_saw(tmp_path: Path) -> None:
    with models.seeded(0):
        model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
    example = (noise(1, seed=9)[0],)
    table = deploykit.calibrate(model, noise(8), example_inputs=example, progress=False)
    assert table.samples == 8
    report = export_mlp(tmp_path / "a", table, example_inputs=example)
    assert report.samples == 1 and report.data.startswith("example inputs (a finished table does not say")


def test_an_output_that_is_always_zero_has_no_sqnr(tmp_path: Path) -> None:
    class Closed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.a(x)
            return y, torch.relu(y - 1000.0)

    artifact = deploykit.export(
        Closed().eval(),
        "x86-cpu",
        "int8",
        example_inputs=(torch.zeros(1, 32),),
        calibration=noise(8),
        output=tmp_path / "a",
        profile=False,
        progress=False,
        strict=False,
    )
    report = artifact.parity
    assert report is not None
    figures = list(report.chain[-1].outputs.values())
    assert figures[0].sqnr_db is not None and figures[1].sqnr_db is None and figures[1].constant == 0.0
    assert any("is zero everywhere" in text and "it has no SQNR" in text for text in report.notes)
