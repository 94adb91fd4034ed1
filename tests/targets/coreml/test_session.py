"""Sessions: the evaluator here; on macOS Core ML, whose calls are checked against a recording fake and coremltools.

The fake stands for `MLModel` and `MLComputePlan`: it shows which calls are made and how results are read, and proves
nothing about Core ML.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conversions import NEEDS_COREMLTOOLS

import deploykit
from deploykit.contract.errors import MissingDependencyError
from deploykit.contract.precision import Evidence
from deploykit.plugin.registry import resolve
from deploykit.testing import models
from deploykit_targets.coreml import session as sessions
from deploykit_targets.coreml import target as plugin
from deploykit_targets.coreml.mil_evaluator.milproto import import_coremltools

pytestmark = NEEDS_COREMLTOOLS


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    model, example = models.transformer_encoder()
    return _export(model, example, tmp_path_factory.mktemp("session"))


def _export(model: Any, example: Any, folder: Path, target: str = "ipad-m4", **changes: Any) -> deploykit.Artifact:
    return deploykit.export(
        model,
        target=target,
        precision="fp16",
        example_inputs=example,
        output=folder / "out",
        progress=False,
        **{"profile": False, **changes},
    )


def test_integers_of_64_bits_are_narrowed_or_refused(artifact: deploykit.Artifact) -> None:
    tokens = artifact.golden().inputs[0]["tokens"]
    assert tokens.dtype == np.int64
    with artifact.open() as session:
        assert session.run({"tokens": tokens})["output"].dtype == np.float32
        with pytest.raises(deploykit.UsageError, match="32 bits do not hold"):
            session.run({"tokens": tokens + 2**40})


def test_the_evaluator_leaves_the_threads_of_pytorch_alone(artifact: deploykit.Artifact) -> None:
    before = torch.get_num_threads()
    with artifact.open(threads=2) as session:
        session.run(artifact.golden().inputs[0])
        assert session.threads == 2
    assert torch.get_num_threads() == before


def test_evidence_and_profile_say_what_ran(artifact: deploykit.Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    target = resolve("ipad-m4").target
    assert target.evidence(artifact) is Evidence.REFERENCE
    profile = target.profile(artifact)
    assert profile.evidence is Evidence.ESTIMATE
    notes = " ".join(profile.notes)
    assert "Neural Engine" in notes and "ops: " in notes and "iOS 17" in notes and "multiply-accumulates" in notes
    monkeypatch.setattr(plugin, "has_core_ml", lambda: True)
    assert target.evidence(artifact) is Evidence.DEVICE


def test_without_published_rates_the_evaluators_time_is_marked(tmp_path: Path) -> None:
    artifact = _export(*models.mlp(), tmp_path, target="iphone-17-pro", profile=True)
    assert artifact.profile is not None and artifact.profile.evidence is Evidence.REFERENCE
    assert any("says nothing of iphone-17-pro" in note for note in artifact.profile.notes)
    assert artifact.manifest.metadata["op_set"] == "iOS18"


def test_running_without_core_ml_and_without_pytorch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    target = resolve("coreml").target
    monkeypatch.setattr(plugin.Requirement, "installed", property(lambda self: self.module != "torch"))
    with pytest.raises(MissingDependencyError, match=r"\[coreml\]"):
        target.check_installed(export=False)
    monkeypatch.setattr(plugin, "has_core_ml", lambda: True)
    target.check_installed(export=False)


# -- Core ML's own runtime ------------------------------------------------------------------------------------


@dataclass
class FakeModel:
    """`coremltools.models.MLModel` on macOS: what it was opened with, and what `predict` got."""

    path: str
    compute_units: Any
    results: dict[str, Any] = field(default_factory=dict)
    fed: list[dict[str, Any]] = field(default_factory=list)

    def predict(self, data: dict[str, Any]) -> dict[str, Any]:
        self.fed.append(data)
        return self.results

    def get_compiled_model_path(self) -> str:
        return f"{self.path}c"


def _native(monkeypatch: pytest.MonkeyPatch, artifact: deploykit.Artifact, results: dict[str, Any]) -> Any:
    units = import_coremltools().ComputeUnit

    def opened(path: str, compute_units: Any) -> FakeModel:
        return FakeModel(path, compute_units, results)

    tools = SimpleNamespace(ComputeUnit=units, models=SimpleNamespace(MLModel=opened))
    monkeypatch.setattr(sessions, "require", lambda *args, **kwargs: tools)
    return sessions.open_session(artifact, 1, native=True)


def test_core_ml_gets_arrays_and_gives_them_back(artifact: deploykit.Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    session = _native(monkeypatch, artifact, {"output": np.ones((1, 6), np.float32)})
    feeds = artifact.golden().inputs[0]
    assert session.run(feeds)["output"].shape == (1, 6)
    assert session._model.path.endswith("model.mlpackage")
    assert session._model.fed[0]["tokens"].dtype == np.int32
    session.close()


def test_core_ml_gets_a_picture_and_gives_probabilities_by_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Core ML takes images as Pillow's, which coremltools' users have")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    x = torch.randint(0, 256, (1, 3, 8, 8)).float() / 127.5 - 1
    options = {
        "image_input": "input",
        "image_scale": 1 / 127.5,
        "image_bias": [-1.0],
        "class_labels": ["no", "yes"],
        "compute_units": "cpu-only",
    }
    artifact = _export(model, (x,), tmp_path, options=options)
    session = _native(monkeypatch, artifact, {"classLabel": "yes", "classLabel_probs": {"yes": 0.75, "no": 0.25}})
    assert session._model.compute_units.name == "CPU_ONLY"
    np.testing.assert_array_equal(session.run({"input": x.numpy()})["output"], [[0.25, 0.75]])
    picture = session._model.fed[0]["input"]
    assert isinstance(picture, image.Image)
    expected = np.rint((x[0].numpy() + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(picture), np.moveaxis(expected, 0, -1))


class MLNeuralEngineComputeDevice:
    """A device as coremltools names it."""


def test_op_times_are_shares_of_the_measured_run(artifact: deploykit.Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    made_for = artifact.manifest.metadata["made_for"]
    linear = next(name for name, node in made_for.items() if node == "linear")
    operations = [
        SimpleNamespace(operator_name="const", outputs=[SimpleNamespace(name="w")], weight=None),
        SimpleNamespace(operator_name="ios17.softmax", outputs=[SimpleNamespace(name="s")], weight=0.25),
        SimpleNamespace(operator_name="ios17.linear", outputs=[SimpleNamespace(name=linear)], weight=0.75),
    ]
    usage = SimpleNamespace(preferred_compute_device=MLNeuralEngineComputeDevice())

    class Plan:
        model_structure = SimpleNamespace(
            program=SimpleNamespace(functions={"main": SimpleNamespace(block=SimpleNamespace(operations=operations))})
        )

        @classmethod
        def load_from_path(cls, path: str, compute_units: Any) -> Plan:
            assert path.endswith(".mlpackagec")
            return cls()

        def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
            return operation.weight and SimpleNamespace(weight=operation.weight)

        def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
            return usage

    session = _native(monkeypatch, artifact, {"output": np.ones((1, 6), np.float32)})
    monkeypatch.setitem(sys.modules, "coremltools.models.compute_plan", SimpleNamespace(MLComputePlan=Plan))
    times = session.op_times(artifact.golden().inputs[0], runs=2)
    assert [time.op for time in times] == ["ios17.linear on NeuralEngineComputeDevice", times[1].op]
    assert times[0].module_path == "blocks.0.qkv"
    assert times[0].median_us == pytest.approx(3 * times[1].median_us)


def test_the_calls_are_those_that_coremltools_has() -> None:
    tools = import_coremltools()
    plan = importlib.import_module("coremltools.models.compute_plan")
    assert {"compute_units", "skip_model_load"} <= inspect.signature(tools.models.MLModel).parameters.keys()
    assert callable(tools.models.MLModel.get_compiled_model_path)
    assert list(inspect.signature(plan.MLComputePlan.load_from_path).parameters)[:2] == ["path", "compute_units"]
    for name in ("get_estimated_cost_for_mlprogram_operation", "get_compute_device_usage_for_mlprogram_operation"):
        assert list(inspect.signature(getattr(plan.MLComputePlan, name)).parameters) == ["self", "operation"]
    fields = {"operator_name", "outputs"}
    assert fields <= plan.MLModelStructureProgramOperation.__dataclass_fields__.keys()
    assert {unit.name for unit in tools.ComputeUnit} == set(sessions._UNITS.values())
