"""`target="device:fastest"`: who may win, what is refused, what stays beside the winner."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the pipeline needs PyTorch")
pytest.importorskip("onnxruntime", reason="these exports run in ONNX Runtime")

import torch
from torch import nn

import deploykit
from deploykit.artifact.choice import read_choice
from deploykit.artifact.manifest import CHOICE_NAME
from deploykit.contract.errors import (
    ArtifactError,
    ConversionError,
    DeviceError,
    MissingDependencyError,
    UnknownTargetError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.contract.host import Host
from deploykit.pipeline import fastest
from deploykit.pipeline.fastest import _installed, described, export_fastest, measured
from deploykit.plugin.registry import Resolved, toolchains


def batches() -> Iterator[torch.Tensor]:
    """Once: every toolchain has to get the same data."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        yield torch.randn(2, 16, generator=generator)


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def export(output: Path, target: str = "x86-cpu:fastest", **changes: Any) -> deploykit.Artifact:
    arguments: dict[str, Any] = {"example_inputs": (torch.zeros(2, 16),), "calibration": batches(), "profile": False}
    return deploykit.export(model(), target, "int8", progress=False, output=output, **(arguments | changes))


@pytest.fixture(scope="module", autouse=True)
def _without_the_compiler() -> Iterator[None]:
    """PyTorch's own compiler, a toolchain that is always there, takes half a minute: it is a candidate at night."""
    with pytest.MonkeyPatch.context() as patch:
        known = {name: plugin for name, plugin in toolchains().items() if name != "aotinductor"}
        patch.setattr(fastest, "toolchains", lambda: known)
        yield


@pytest.fixture(scope="module")
def chosen(_without_the_compiler: None, tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    return export(tmp_path_factory.mktemp("chosen") / "a")


def test_the_fastest_that_passes_is_published_with_the_figures_of_all(chosen: deploykit.Artifact) -> None:
    artifact = chosen
    choice = artifact.choice
    assert choice is not None
    assert artifact.path.name == "a" and artifact.status == "verified"
    assert artifact.target == choice.winner == choice.candidates[0].target
    measured = [row for row in choice.candidates if row.latency_ms is not None]
    assert [row.latency_ms.p50 for row in measured] == sorted(row.latency_ms.p50 for row in measured)
    assert all(row.status == "verified" and row.sqnr_db >= 18.0 for row in measured)
    assert all(row.reason for row in choice.candidates if row.latency_ms is None)
    assert "x86-cpu:onnxruntime" in {row.target for row in choice.candidates}
    assert deploykit.load(artifact.path).choice == choice
    assert not list(artifact.path.parent.glob(".*")), "something was left beside the artifact"


@pytest.mark.nightly
def test_every_installed_toolchain_is_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "toolchains", toolchains)
    choice = export(tmp_path / "a").choice
    assert choice is not None
    rows = {row.target: row for row in choice.candidates}
    assert rows["x86-cpu:aotinductor"].status == "verified" and rows["x86-cpu:aotinductor"].latency_ms is not None


def test_what_fails_its_gate_cannot_win_and_nothing_is_published(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"no toolchain of x86-cpu .*x86-cpu:onnxruntime: SQNR .* below 190 dB"):
        export(tmp_path / "a", tolerance=deploykit.Tolerance(min_sqnr_db=190.0))
    assert not any(tmp_path.iterdir())


def test_an_artifact_that_fails_by_its_placement_says_what_was_placed(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    failed = deploykit.export(
        network, "x86-cpu", "int8-dynamic", example_inputs=(torch.zeros(1, 1, 8, 8),),
        strict=False, profile=False, progress=False, output=tmp_path / "a",
    )  # fmt: skip
    row = described("int8-dynamic", failed)
    assert row.status == "failed"
    assert row.reason.endswith("performance gate: 0.0% of multiply-accumulates are in int8-dynamic")


def test_a_refusal_is_a_row_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = toolchains().get("openvino")
    if plugin is None or not all(r.installed for r in plugin.capabilities().export_requires):
        pytest.skip("needs a second toolchain for x86-cpu: OpenVINO is not installed")

    def refuse(prepared: Any, folder: Path) -> Any:
        raise ConversionError("no kernel for that")

    monkeypatch.setattr(plugin, "lower", refuse)
    choice = export(tmp_path / "a").choice
    assert choice is not None
    refused = {row.target: row for row in choice.candidates}["x86-cpu:openvino"]
    assert refused.status == "refused" and "no kernel for that" in refused.reason


class Toolchains:
    """`deploykit.export`, and beside ONNX Runtime a toolchain `x86-cpu:other`, whose exports are what a test says."""

    def __init__(self, patch: pytest.MonkeyPatch, other: Callable[..., Any]) -> None:
        found, _ = _installed("x86-cpu", "int8")
        one = next(offer for offer in found if offer.typed == "x86-cpu:onnxruntime")
        double: Any = SimpleNamespace(name="other")
        offers = [Resolved("x86-cpu:other", double, one.device), one]
        patch.setattr(fastest, "_installed", lambda device, precision: (offers, {}))
        patch.setattr("deploykit.pipeline.export.export_fastest", self._fastest)
        self.other, self.tried = other, list[str]()

    def _fastest(self, export: Callable[..., Any], request: dict[str, Any]) -> Any:
        return export_fastest(lambda **given: self._export(export, given), request)

    def _export(self, export: Callable[..., Any], given: dict[str, Any]) -> Any:
        self.tried.append(given["target"])
        own = given["target"] == "x86-cpu:other"
        return self.other(export, {**given, "target": "x86-cpu:onnxruntime"}) if own else export(**given)


def same(export: Callable[..., Any], given: dict[str, Any]) -> Any:
    return export(**given)


def crash(export: Callable[..., Any], given: dict[str, Any]) -> Any:
    raise RuntimeError("the converter fell over")


def test_a_toolchain_that_crashes_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Toolchains(monkeypatch, crash)
    artifact = export(tmp_path / "a")
    choice = artifact.choice
    assert choice is not None and choice.winner == "x86-cpu:onnxruntime" == artifact.target
    row = choice.candidates[-1]
    assert (row.target, row.status, row.latency_ms) == ("x86-cpu:other", "crashed", None)
    assert row.reason == "unexpected RuntimeError: the converter fell over"


def test_what_crashes_every_toolchain_alike_is_raised_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolchains = Toolchains(monkeypatch, crash)
    monkeypatch.setattr(toolchains, "_export", crash)
    with pytest.raises(RuntimeError, match=r"^the converter fell over$"):
        export(tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_an_interruption_ends_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(export: Callable[..., Any], given: dict[str, Any]) -> Any:
        raise KeyboardInterrupt

    toolchains = Toolchains(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "a")
    assert toolchains.tried == ["x86-cpu:other"] and not any(tmp_path.iterdir())


def test_what_misses_its_gate_is_a_row_beside_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(export: Callable[..., Any], given: dict[str, Any]) -> Any:
        return export(**{**given, "tolerance": deploykit.Tolerance(min_sqnr_db=190.0)})

    Toolchains(monkeypatch, strict)
    choice = export(tmp_path / "a").choice
    assert choice is not None and choice.winner == "x86-cpu:onnxruntime"
    row = choice.candidates[-1]
    assert (row.target, row.status, row.latency_ms) == ("x86-cpu:other", "failed", None)
    assert row.sqnr_db is not None and "below 190 dB" in row.reason


@pytest.mark.parametrize("error", [DeviceError("the runtime is gone"), OSError("the runtime is gone")])
def test_what_does_not_run_when_it_is_measured_is_a_row_that_cannot_win(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = deploykit.Artifact.open

    def refuse(artifact: deploykit.Artifact, **given: Any) -> Any:
        if artifact.path.name == "other" and made:
            raise error
        return opened(artifact, **given)

    def export_of(export: Callable[..., Any], given: dict[str, Any]) -> Any:
        made.append(export(**given))
        return made[0]

    made: list[deploykit.Artifact] = []
    Toolchains(monkeypatch, export_of)
    monkeypatch.setattr(deploykit.Artifact, "open", refuse)
    choice = export(tmp_path / "a").choice
    assert choice is not None and choice.winner == "x86-cpu:onnxruntime"
    row = choice.candidates[-1]
    assert (row.target, row.status, row.latency_ms) == ("x86-cpu:other", "failed", None)
    assert row.reason.startswith("it does not run: ") and row.reason.endswith("the runtime is gone")


def test_where_nothing_runs_the_reason_of_each_is_told(
    chosen: deploykit.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(artifact: deploykit.Artifact, **given: Any) -> Any:
        raise DeviceError("it is gone")

    monkeypatch.setattr(deploykit.Artifact, "open", refuse)
    with pytest.raises(DeviceError, match=r"nothing that was made runs here: one: it is gone; two: it is gone"):
        measured({"one": chosen, "two": chosen}, {})


def test_of_two_that_are_equally_fast_the_smaller_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def larger(export: Callable[..., Any], given: dict[str, Any]) -> Any:
        return export(**{**given, "precision": "fp32", "calibration": None})

    Toolchains(monkeypatch, larger)
    monkeypatch.setattr(fastest, "measure_interleaved", lambda sessions, feeds, effort: ([[1.0]] * len(sessions), 0))
    choice = export(tmp_path / "a").choice
    assert choice is not None and [row.target for row in choice.candidates] == ["x86-cpu:onnxruntime", "x86-cpu:other"]
    sizes = [row.size_bytes or 0 for row in choice.candidates]
    assert sizes[0] < sizes[1]


def test_a_folder_that_is_somebody_elses_is_left_alone_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolchains = Toolchains(monkeypatch, same)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="left alone"):
        export(tmp_path / "a")
    assert not toolchains.tried and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_artifact_that_is_there_is_replaced_once_there_is_a_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: deploykit.Artifact
) -> None:
    shutil.copytree(chosen.path, tmp_path / "a")
    toolchains = Toolchains(monkeypatch, same)
    monkeypatch.setattr(toolchains, "_export", crash)
    with pytest.raises(RuntimeError):
        export(tmp_path / "a")
    assert deploykit.load(tmp_path / "a").fingerprint == chosen.fingerprint
    Toolchains(monkeypatch, crash)
    assert {row.status for row in export(tmp_path / "a").choice.candidates} == {"verified", "crashed"}  # type: ignore[union-attr]


def test_json_is_one_document_with_the_rows_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deploykit.cli import main

    (tmp_path / "network.py").write_text(
        "import torch\ndef make():\n    print('noise')\n"
        "    return torch.nn.Sequential(torch.nn.Linear(16, 4)).eval(), (torch.zeros(2, 16),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    Toolchains(monkeypatch, crash)
    command = ["export", "network:make", "--target", "x86-cpu:fastest", "--precision", "int8", "--json"]
    command += ["--calibration", "synthetic", "--output", str(tmp_path / "a")]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["choice"]["winner"] == document["target"] == "x86-cpu:onnxruntime"
    assert [row["status"] for row in document["choice"]["candidates"]] == ["verified", "crashed"]


def test_a_toolchain_that_is_not_installed_is_a_row_that_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*, export: bool) -> None:
        raise MissingDependencyError("openvino", extra="openvino", purpose="export")

    monkeypatch.setattr(toolchains()["openvino"], "check_installed", missing)
    offers, lacking = _installed("x86-cpu", "int8")
    assert "x86-cpu:onnxruntime" in [offer.typed for offer in offers]
    row = described("x86-cpu:openvino", lacking["x86-cpu:openvino"])
    assert row.status == "not installed" and "pip install" in row.reason and row.latency_ms is None


def test_a_device_of_another_architecture_is_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.pipeline.fastest.this_host", lambda: Host("x86_64", (), 2, "Linux"))
    with pytest.raises(DeviceError, match=r"arm-cpu is arm64 and this machine is x86-64.*\n.*arm-cpu:tvm"):
        export(tmp_path / "a", "arm-cpu:fastest", calibration=())
    with pytest.raises(DeviceError, match="raspberry-pi-5 is arm64"):
        export(tmp_path / "a", "raspberry-pi-5:fastest", calibration=())


def test_the_toolchains_of_an_arm_host_are_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.pipeline.fastest.this_host", lambda: Host("aarch64", ("asimd",), 2, "Linux"))
    monkeypatch.setattr("deploykit.plugin.target.Target.check_installed", lambda self, *, export: None)
    offers, missing = _installed("arm-cpu", "int8")
    assert [offer.typed for offer in offers] == ["arm-cpu:tvm"] and not missing
    with pytest.raises(DeviceError, match="x86-cpu is x86-64 and this machine is arm64"):
        _installed("x86-cpu", "int8")


def test_names_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UnknownTargetError, match="unknown target 'x86-cpuu'"):
        export(tmp_path / "a", "x86-cpuu:fastest")
    with pytest.raises(UnknownTargetError, match='such as target="x86-cpu:fastest"'):
        export(tmp_path / "a", "fastest")
    given: dict[str, Any] = {"example_inputs": (torch.zeros(2, 16),), "output": tmp_path / "a"}
    with pytest.raises(UnsupportedPrecisionError, match=r"no toolchain of x86-cpu has fp8[\s\S]*-> one of fp32, "):
        deploykit.export(model(), "x86-cpu:fastest", "fp8", **given)
    with pytest.raises(UsageError, match=r"unknown precision 'int9'\n  -> did you mean int8"):
        deploykit.export(model(), "x86-cpu:fastest", "int9", **given)


def test_a_recipe_is_of_one_toolchain(chosen: deploykit.Artifact, tmp_path: Path) -> None:
    for call in (deploykit.export, deploykit.tune, deploykit.sensitivity):
        with pytest.raises(UsageError, match="x86-cpu:fastest chooses between toolchains"):
            call(model(), "x86-cpu:fastest", recipe=chosen.recipe)


@pytest.mark.parametrize("damage", [b"", b"[]", b"{" * 5000, b"\xff", b'{"winner": 1}'])
def test_a_damaged_record_is_no_choice(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / CHOICE_NAME).write_bytes(damage)
    assert read_choice(tmp_path) is None


def test_the_table_is_shown(chosen: deploykit.Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen.choice is not None
    first, heads, *rows = str(chosen.choice).splitlines()
    assert first.startswith(f"{chosen.choice.winner}. Measured in turns on ")
    assert heads.split()[:2] == ["tried", "status"]
    assert [row.split()[0] for row in rows] == [each.target for each in chosen.choice.candidates]

    from deploykit.cli import main

    assert main(["inspect", str(chosen.path)]) == 0
    page = capsys.readouterr().out
    assert "Measured in turns" in page and "why not" in page
