"""`target="device:fastest"`: who may win, what is refused, what stays beside the winner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
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
    ConversionError,
    DeviceError,
    MissingDependencyError,
    UnknownTargetError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.contract.host import Host
from deploykit.pipeline import fastest
from deploykit.pipeline.fastest import _installed, described
from deploykit.plugin.registry import toolchains


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
